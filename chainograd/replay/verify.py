"""Whether a step that ran again returned the state that it returned first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from chainograd.errors import ReplayError
from chainograd.replay.comparison import (
    ADVICE,
    UNKNOWN,
    compare_rounded,
    differ,
    differ_by_more,
    difference_in_words,
    excerpt,
    is_ready,
    kinds_in_words,
    largest_difference,
    largest_in_words,
    paired_parts,
    refused,
    surely_equal,
    tolerance,
)
from chainograd.replay.signature import Signature
from chainograd.tensors.digest import Digest, digest

Verify = Literal["exact", "close", "off"]

# Note [Verdicts]
# 1. A recomputed state is compared with the first one if that is stored on its device, else with
#    the digest of the first one. If bits need not be equal, it is compared with an excerpt.
# 2. On a CPU the verdict is read at once. On an accelerator, reading a verdict would wait for the
#    device after each step. So verdicts are collected, and read once, before gradients leave.


@dataclass(slots=True, eq=False)
class Verifier:
    """Compares the states that steps return when they run again with those they returned first.

    Attributes:
        verify: How states are compared.
        rounding: The dtype that stored states are rounded to, if they are rounded.
        coarsest: The coarsest floating dtype in which steps are known to compute.
        digests: Digests of first states, by the index of the step that they enter.
        samples: Excerpts of first states, by the same index.
        graphs: For each step, the places of the shared tensors that its graph uses, and the
            signature of the graph.
        open: Verdicts that were not read yet: whether there is a difference, as a tensor; the step;
            and the words for the difference.
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
        """Whether a recomputed state must be equal to the bit."""
        return self.verify == "exact" and self.rounding is None

    def saw(self, i: int, leaves: Sequence[object]) -> None:
        """Remember the state that enters step i, as far as a later comparison needs it."""
        if self.exact:
            self.digests[i] = digest(leaves)
        elif self.verify != "off":
            self.samples[i] = excerpt(leaves)

    def same(
        self, i: int, again: Sequence[object], first: Callable[[], Sequence[object]] | None
    ) -> None:
        """Check that step i returned the state that it returned first.

        Args:
            i: The step.
            again: The leaves of the state that it returned now.
            first: Returns the leaves of the first state; None if that is not stored on the device.

        Raises:
            ReplayError: If the states differ; on an accelerator `settle` raises it.
        """
        if self.verify == "off":
            return
        sampled = self.samples.get(i + 1)
        if first is None and sampled is not None:
            before: Sequence[object] | None = sampled
            again = excerpt(again)
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

        Args:
            i: The step.
            used: The places of the shared tensors that its graph uses now.
            like: The signature of its graph now.

        Raises:
            ReplayError: If the graph is another one.
        """
        first, before = self.graphs.get(i, (used, None))
        if self.verify == "off" or before is None or like is None:
            return
        if (first, before) != (used, like):
            raise ReplayError(
                f"Step {i} was recomputed with another graph than in the forward pass. Now it has "
                f"{like.nodes} operations that use {len(used)} of the tensors shared by all steps; "
                f"then it had {before.nodes} operations that used {len(first)}. If these counts "
                f"agree, the derivatives use other numbers. {ADVICE}"
            )

    def settle(self) -> None:
        """Read the verdicts that are open.

        Raises:
            ReplayError: If a step did not return the state that it returned first.
        """
        verdicts, self.open = self.open, []
        if not verdicts:
            return
        device = verdicts[0][0].device
        answers = torch.stack([differs.to(device) for differs, _, _ in verdicts]).tolist()
        for differs, (_, i, words) in zip(answers, verdicts, strict=True):
            if differs:
                raise refused(i, words())

    def _same_digest(self, i: int, again: Sequence[object]) -> None:
        before, now = self.digests[i + 1], digest(again)
        if [_count(d) for d in before] != [_count(d) for d in now]:
            raise refused(i, UNKNOWN)
        for a, b in zip(before, now, strict=True):
            for one, two in zip(a or (), b or (), strict=True):
                self._judge(i, one != two, lambda: UNKNOWN)

    def _same_values(self, i: int, first: Sequence[object], again: Sequence[object]) -> None:
        for a, b in zip(first, again, strict=False):
            if isinstance(a, Tensor) and isinstance(b, Tensor) and not surely_equal(a, b):
                pairs = paired_parts(a, b)
                if pairs is None:
                    raise refused(i, kinds_in_words(a, b))
                for one, two in pairs:
                    self._compare(i, one, two)
        if len(first) != len(again):
            raise refused(
                i,
                f"was recomputed with {len(again)} leaves in its state, but the forward pass saw "
                f"{len(first)}",
            )

    def _compare(self, i: int, a: Tensor, b: Tensor) -> None:
        if a.is_floating_point() and a.element_size() == 1 and self.verify == "exact":
            a, b = a.view(torch.uint8), b.view(torch.uint8)  # torch does not compare float8
        close = self.verify == "close" and (a.is_floating_point() or a.is_complex())
        differs = differ_by_more(a, b, tolerance(a.dtype, self.coarsest)) if close else differ(a, b)
        largest = None if is_ready(a) else largest_difference(a, b)
        self._judge(
            i,
            differs,
            lambda: difference_in_words(a, b) if largest is None else largest_in_words(largest),
        )

    def _judge(self, i: int, differs: Tensor, words: Callable[[], str]) -> None:
        if not is_ready(differs):
            self.open.append((differs, i, words))
        elif bool(differs):
            raise refused(i, words())


def compare(index: int, first: Sequence[object], again: Sequence[object], verify: Verify) -> None:
    """Check at once that step ``index`` returned the same state again.

    Raises:
        ReplayError: If the states differ.
    """
    verifier = Verifier(verify)
    verifier.same(index, again, lambda: first)
    verifier.settle()


def _count(parts: tuple[Tensor, ...] | None) -> int | None:
    return None if parts is None else len(parts)
