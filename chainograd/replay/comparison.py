"""Two states side by side: whether they are equal, close, or about equal, and the error if not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chainograd.errors import ReplayError
from chainograd.tensors.parts import dense_parts, is_plain

AGAIN = "was recomputed with another result than in the forward pass"
UNKNOWN = f"{AGAIN} (the state was not stored, so the difference is not known)"

ADVICE = (
    "A step must be a pure function of its index and its state. Likely causes, in this order: the "
    "step draws from a generator that the chain does not know (name it, `generators=[…]`); its "
    "weights or other attributes changed after the forward pass (call `backward()` before "
    "`optimizer.step()`, and carry what the step remembers in the state); it runs in another "
    "context than in the forward pass, such as a mode or a patch around that call only (put the "
    "context inside the step); its kernels do not repeat their results to the bit (pass "
    "`verify='close'`). `chain.check(x)` looks for the line."
)


def is_ready(tensor: Tensor) -> bool:
    """Return whether a tensor's values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def surely_equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two plain tensors on a CPU are equal: a fast answer to the commonest case."""
    plain = is_plain(a) and is_plain(b) and a.device.type == "cpu" == b.device.type
    return plain and a.dtype == b.dtype and a.element_size() > 1 and torch.equal(a, b)


def paired_parts(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """Return the plain parts of two tensors in pairs; None if the tensors differ in kind."""
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return None
    ours, theirs = dense_parts(a), dense_parts(b)
    if [part.shape for part in ours] != [part.shape for part in theirs]:
        return None
    return list(zip(ours, theirs, strict=True))


def differ(a: Tensor, b: Tensor) -> Tensor:
    """Return whether two plain tensors differ anywhere; NaN is equal to NaN."""
    unequal = a != b
    if a.is_floating_point() or a.is_complex():
        unequal &= ~(a.isnan() & b.isnan())
    return unequal.any()


def differ_by_more(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Return whether two plain tensors differ by more than a part of a's largest finite entry."""
    if a.element_size() == 1:
        a, b = a.float(), b.float()
    sizes = torch.where(a.isfinite(), a, 0).abs().flatten()
    room = tolerance * (a.abs() + (sizes.max() if sizes.numel() else 0))
    both = a.isnan() & b.isnan()
    return ~(((a - b).abs() <= room) | (a == b) | both).all()


def tolerance(dtype: torch.dtype, coarsest: torch.dtype | None) -> float:
    """Return the relative difference up to which two states are close.

    A hundred times the rounding leaves room for reordered sums, and is far below what other noise
    or other weights would do. For bfloat16 that would be 0.8 of the largest entry, so the tolerance
    is at most a twentieth.

    Args:
        dtype: The dtype of the states.
        coarsest: The coarsest floating dtype in which steps are known to compute.
    """
    eps = max(torch.finfo(d).eps for d in (dtype, coarsest) if d is not None)
    return min(100 * eps, 0.05)


def largest_difference(a: Tensor, b: Tensor) -> Tensor | None:
    """Return the largest difference of two plain tensors in their dtype, without waiting for it."""
    if not a.numel() or a.dtype is torch.bool:
        return None
    a, b = (t.float() if t.element_size() == 1 else t for t in (a, b))
    return (a - b).abs().max()


def difference_in_words(a: Tensor, b: Tensor) -> str:
    """Return the words for two plain tensors that differ."""
    return largest_in_words((_wide(a) - _wide(b)).abs().max())


def largest_in_words(largest: Tensor) -> str:
    """Return the words for two tensors that differ, given their largest difference."""
    return f"{AGAIN}: the largest difference is {largest.item():.3g}"


def kinds_in_words(a: Tensor, b: Tensor) -> str:
    """Return the words for two tensors that differ in shape, dtype or layout."""

    def told(t: Tensor) -> str:
        layout = "" if t.layout is torch.strided else f", {t.layout}"
        return f"shape {tuple(t.shape)} and {t.dtype}{layout}"

    return f"was recomputed with {told(b)}, but the forward pass saw {told(a)}"


def refused(i: int, words: str) -> ReplayError:
    """Return the error for step i, given the words for what differs."""
    return ReplayError(f"Step {i} {words}. {ADVICE}").in_step(i)


def compare_rounded(
    index: int, first: Sequence[object], again: Sequence[object], dtype: torch.dtype
) -> None:
    """Check that step ``index`` returned about the same state from a rounded one.

    How rounding grows in a step is unknown, so this shows only large differences: other noise,
    other weights.

    Raises:
        ReplayError: If the states differ by more than rounding explains.
    """
    for a, b in zip(first, again, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.is_floating_point():
            continue
        off = torch.linalg.vector_norm(b.detach() - a, dtype=torch.float64)
        room = 32 * torch.finfo(dtype).eps * torch.linalg.vector_norm(a, dtype=torch.float64)
        if off > room:
            raise ReplayError(
                f"Step {index} was recomputed from a state rounded to {dtype}, and its result is "
                f"{off.item():.3g} away from the first one; rounding explains {room.item():.3g}. "
                f"{ADVICE} If the step is that sensitive to rounding, store states in full "
                "precision, or pass `verify='off'`."
            )


def excerpt(leaves: Sequence[object]) -> tuple[Tensor | None, ...]:
    """Return up to 2048 entries of each tensor: enough to tell other noise from rounding."""
    return tuple(_entries(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def _entries(tensor: Tensor) -> Tensor:
    parts = dense_parts(tensor)
    entries = parts[-1].flatten()  # of a sparse tensor the values, which follow the indices
    return entries[:: max(entries.numel() // 1024, 1)].clone()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
