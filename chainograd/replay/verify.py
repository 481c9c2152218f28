"""Whether a step that ran again gave what it gave the first time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from chainograd.errors import ReplayError
from chainograd.replay.signature import Signature
from chainograd.tensors.digest import Digest, digest
from chainograd.tensors.parts import dense_parts, is_plain

Verify = Literal["exact", "close", "off"]

# Note [Verdicts]
# 1. A state that a step gives again is compared with the first one, where that is at hand on its
#    device, or by its digest. Where bits need not be the same, it is compared with a sample.
# 2. On a CPU the verdict is there at once. On an accelerator to ask for it would wait for the
#    device after each step, so verdicts are gathered and asked for once, before gradients leave.


@dataclass(slots=True, eq=False)
class Verifier:
    """Compares what steps give when they run again with what they gave first.

    Attributes:
        verify: How.
        rounding: The dtype that states are kept in, if they are rounded.
        coarsest: The coarsest floating dtype that steps are known to compute in.
        digests: Of first states, by the index of the step they enter.
        samples: Likewise.
        graphs: What each step used of what the steps share, and what its graph was like.
        open: Verdicts that were not asked for: what differs, as a tensor; the step; the words.
    """

    verify: Verify
    rounding: torch.dtype | None = None
    coarsest: torch.dtype | None = None
    digests: dict[int, Digest] = field(default_factory=dict)
    samples: dict[int, tuple[Tensor | None, ...]] = field(default_factory=dict)
    graphs: dict[int, tuple[set[int], Signature | None]] = field(default_factory=dict)
    open: list[tuple[Tensor, int, Callable[[], str]]] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether a state that is made again must be the same to the bit."""
        return self.verify == "exact" and self.rounding is None

    def saw(self, i: int, leaves: Sequence[object]) -> None:
        """Remember what the state that enters step i is compared with later."""
        if self.exact:
            self.digests[i] = digest(leaves)
        elif self.verify != "off":
            self.samples[i] = sample(leaves)

    def same(
        self, i: int, again: Sequence[object], first: Callable[[], Sequence[object]] | None
    ) -> None:
        """Check that step i gave the state that it gave first.

        Args:
            i: The step.
            again: The leaves of the state that it gives now.
            first: Brings those of the first state, if it is kept and may be looked at.

        Raises:
            ReplayError: If it did not; on an accelerator `settle` raises it.
        """
        if self.verify == "off":
            return
        sampled = self.samples.get(i + 1)
        if first is None and sampled is not None:
            before: Sequence[object] | None = sampled
            again = sample(again)
        else:
            before = None if first is None else first()
        if before is None:
            if i + 1 in self.digests:
                self._same_digest(i, again)
        elif self.rounding is not None:
            compare_rounded(i, before, again, self.rounding)
        else:
            self._same_values(i, before, again)

    def same_graph(self, i: int, used: set[int], like: Signature | None) -> None:
        """Check that step i has the graph that it had first: note [Signatures].

        Raises:
            ReplayError: If it has not.
        """
        first, before = self.graphs.get(i, (used, None))
        if self.verify == "off" or before is None or like is None:
            return
        if (first, before) != (used, like):
            raise ReplayError(
                f"Step {i} was recomputed with another graph than in the forward pass: "
                f"{like.nodes} operations that use {len(used)} of the tensors which the steps "
                f"share, where there were {before.nodes} that use {len(first)}, or other numbers "
                "in their derivatives. "
                f"{ADVICE}"
            )

    def settle(self) -> None:
        """Ask for the verdicts that are open.

        Raises:
            ReplayError: If a step did not give what it gave first.
        """
        verdicts, self.open = self.open, []
        if not verdicts:
            return
        device = verdicts[0][0].device
        answers = torch.stack([differs.to(device) for differs, _, _ in verdicts]).tolist()
        for differs, (_, i, words) in zip(answers, verdicts, strict=True):
            if differs:
                raise ReplayError(f"Step {i} {words()}. {ADVICE}").in_step(i)

    def _same_digest(self, i: int, again: Sequence[object]) -> None:
        before, now = self.digests[i + 1], digest(again)
        if [_kinds(d) for d in before] != [_kinds(d) for d in now]:
            raise ReplayError(f"Step {i} {_UNKNOWN}. {ADVICE}").in_step(i)
        for a, b in zip(before, now, strict=True):
            for one, two in zip(a or (), b or (), strict=True):
                self._judge(i, one != two, lambda: _UNKNOWN)

    def _same_values(self, i: int, first: Sequence[object], again: Sequence[object]) -> None:
        for a, b in zip(first, again, strict=False):
            if isinstance(a, Tensor) and isinstance(b, Tensor) and not _surely_equal(a, b):
                pairs = _pairs(a, b)
                if pairs is None:
                    raise ReplayError(f"Step {i} {_other_kind(a, b)}. {ADVICE}").in_step(i)
                for one, two in pairs:
                    self._compare(i, one, two)
        if len(first) != len(again):
            raise ReplayError(
                f"Step {i} was recomputed with {len(again)} leaves in its state, but the forward "
                f"pass saw {len(first)}. {ADVICE}"
            ).in_step(i)

    def _compare(self, i: int, a: Tensor, b: Tensor) -> None:
        if a.is_floating_point() and a.element_size() == 1 and self.verify == "exact":
            a, b = a.view(torch.uint8), b.view(torch.uint8)  # float8, which torch does not compare
        close = self.verify == "close" and (a.is_floating_point() or a.is_complex())
        differs = _beyond(a, b, self._tolerance(a.dtype)) if close else _unequal(a, b)
        largest = None if _at_once(a) else _largest_difference(a, b)
        self._judge(i, differs, lambda: _difference(a, b) if largest is None else _by(largest))

    def _judge(self, i: int, differs: Tensor, words: Callable[[], str]) -> None:
        if not _at_once(differs):
            self.open.append((differs, i, words))
        elif bool(differs):
            raise ReplayError(f"Step {i} {words()}. {ADVICE}").in_step(i)

    def _tolerance(self, dtype: torch.dtype) -> float:
        # Room for reordered sums, far from what other noise or other weights would do: a twentieth
        # of the largest entry, where a hundred times the rounding of bfloat16 would be all of it.
        eps = torch.finfo(dtype).eps
        if self.coarsest is not None:
            eps = max(eps, torch.finfo(self.coarsest).eps)
        return min(100 * eps, 0.05)


def compare(index: int, first: Sequence[object], again: Sequence[object], verify: Verify) -> None:
    """Check at once that step ``index`` gave the same state again.

    Raises:
        ReplayError: If it did not.
    """
    verifier = Verifier(verify)
    verifier.same(index, again, lambda: first)
    verifier.settle()


def compare_rounded(
    index: int, first: Sequence[object], again: Sequence[object], dtype: torch.dtype
) -> None:
    """Check that step ``index`` gave about the same state from a rounded one.

    How rounding grows in a step is not known, so this only notices what is far off: other noise,
    other weights.

    Raises:
        ReplayError: If it did not.
    """
    for a, b in zip(first, again, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.is_floating_point():
            continue
        off = torch.linalg.vector_norm(b.detach() - a, dtype=torch.float64)
        room = 32 * torch.finfo(dtype).eps * torch.linalg.vector_norm(a, dtype=torch.float64)
        if off > room:
            raise ReplayError(
                f"Step {index}, run again from a state rounded to {dtype}, is {off.item():.3g} "
                f"away from what it gave first; rounding explains {room.item():.3g}. {ADVICE} "
                "Where a step is as sensitive as that, keep states in full, or pass `verify='off'`."
            )


def sample(leaves: Sequence[object]) -> tuple[Tensor | None, ...]:
    """Return up to 2048 entries of each tensor: enough to tell other noise from rounding."""
    return tuple(_some(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def _some(tensor: Tensor) -> Tensor:
    parts = dense_parts(tensor)
    entries = parts[-1].flatten()  # the values, where there are indices too
    return entries[:: max(entries.numel() // 1024, 1)].clone()


ADVICE = (
    "A step must be a pure function of its index and its state. Likely causes, in this order: it "
    "draws from a generator that the chain does not know (name it, `generators=[…]`); its weights, "
    "or attributes that it keeps, changed since the forward pass (call `backward()` before "
    "`optimizer.step()`, carry what it remembers in the state); it runs in another context than in "
    "the forward pass, such as a mode or a patch around that call only (put the context inside of "
    "the step); its kernels do not repeat their results to the bit (pass `verify='close'`). "
    "`chain.check(x)` looks for the line."
)
_AGAIN = "was recomputed with another result than in the forward pass"
_UNKNOWN = f"{_AGAIN} (the state is not kept, so the difference is not known)"


def _at_once(tensor: Tensor) -> bool:
    """Return whether a tensor's values can be asked for without waiting: note [Verdicts], 2."""
    return tensor.device.type == "cpu"


def _kinds(parts: tuple[Tensor, ...] | None) -> int | None:
    return None if parts is None else len(parts)


def _surely_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether plain tensors on a CPU have the same numbers, the commonest case by far."""
    plain = is_plain(a) and is_plain(b) and a.device.type == "cpu" == b.device.type
    return plain and a.dtype == b.dtype and a.element_size() > 1 and torch.equal(a, b)


def _pairs(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """Return the plain parts of two tensors side by side; None if they are not of one kind."""
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return None
    ours, theirs = dense_parts(a), dense_parts(b)
    if [part.shape for part in ours] != [part.shape for part in theirs]:
        return None
    return list(zip(ours, theirs, strict=True))


def _unequal(a: Tensor, b: Tensor) -> Tensor:
    """Return whether tensors differ, where NaN is equal to NaN."""
    differ = a != b
    if a.is_floating_point() or a.is_complex():
        differ &= ~(a.isnan() & b.isnan())
    return differ.any()


def _beyond(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Return whether tensors differ by more than a part of the largest finite entry."""
    if a.element_size() == 1:
        a, b = a.float(), b.float()
    sizes = torch.where(a.isfinite(), a, 0).abs().flatten()
    room = tolerance * (a.abs() + (sizes.max() if sizes.numel() else 0))
    both = a.isnan() & b.isnan()
    return ~(((a - b).abs() <= room) | (a == b) | both).all()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _largest_difference(a: Tensor, b: Tensor) -> Tensor | None:
    if not a.numel() or a.dtype is torch.bool:
        return None
    a, b = (t.float() if t.element_size() == 1 else t for t in (a, b))
    return (a - b).abs().max()


def _difference(a: Tensor, b: Tensor) -> str:
    return _by((_wide(a) - _wide(b)).abs().max())


def _by(largest: Tensor) -> str:
    return f"{_AGAIN}: the largest difference is {largest.item():.3g}"


def _other_kind(a: Tensor, b: Tensor) -> str:
    def told(t: Tensor) -> str:
        layout = "" if t.layout is torch.strided else f", {t.layout}"
        return f"shape {tuple(t.shape)} and {t.dtype}{layout}"

    return f"was recomputed with {told(b)}, but the forward pass saw {told(a)}"
