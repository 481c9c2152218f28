"""Whether a step that ran again gave what it gave the first time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from chainograd.errors import ReplayError

Verify = Literal["exact", "close", "off"]


def compare(index: int, first: Sequence[object], again: Sequence[object], verify: Verify) -> None:
    """Check that step ``index`` gave the same state again.

    Raises:
        ReplayError: If it did not.
    """
    if verify == "off":
        return
    for a, b in zip(first, again, strict=False):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if not (a.dtype == b.dtype and torch.equal(a, b)) and not _alike(a, b, verify):
            raise ReplayError(f"Step {index} {_difference(a, b)}. {_ADVICE}")
    if len(first) != len(again):
        raise ReplayError(
            f"Step {index} was recomputed with {len(again)} leaves in its state, but the forward "
            f"pass saw {len(first)}. {_ADVICE}"
        )


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
                f"away from what it gave first; rounding explains {room.item():.3g}. {_ADVICE} "
                "Where a step is as sensitive as that, keep states in full, or pass `verify='off'`."
            )


def sample(leaves: Sequence[object]) -> tuple[Tensor | None, ...]:
    """Return up to 2048 entries of each tensor: enough to tell other noise from rounding."""
    return tuple(_some(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def _some(tensor: Tensor) -> Tensor:
    entries = tensor.detach().flatten()
    return entries[:: max(entries.numel() // 1024, 1)].clone()


Digest = tuple[Tensor | None, ...]


def digest(leaves: Sequence[object]) -> Digest:
    """Return a number for each tensor that almost surely changes when a bit of it does.

    It is the sum of the tensor's bits as integers, without carrying: 8 bytes in place of a state.
    """
    return tuple(_sum_of_bits(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def compare_digest(index: int, first: Digest, again: Sequence[object]) -> None:
    """Check that step ``index`` gave a state with the same digest again.

    Raises:
        ReplayError: If it did not.
    """
    for a, b in zip(first, digest(again), strict=False):
        if (a is None) != (b is None) or (
            a is not None and b is not None and not torch.equal(a, b)
        ):
            break
    else:
        if len(first) == len(again):
            return
    raise ReplayError(
        f"Step {index} was recomputed with another result than in the forward pass (the state is "
        f"not kept, so the difference is not known). {_ADVICE}"
    )


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


_ADVICE = (
    "A step must be a pure function of its index and its state: carry what it remembers in the "
    "state, hand its generators in with `generators=[…]`, and leave its weights and settings "
    "alone until the backward pass is over. If the kernels in use do not repeat their results "
    "exactly, pass `verify='close'`."
)


def _alike(a: Tensor, b: Tensor, verify: Verify) -> bool:
    """Return whether tensors that are not equal are so for this comparison: NaNs, rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if verify == "exact":
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    # Room for reordered sums, far from what other noise or other weights would do.
    tolerance = 100 * torch.finfo(a.dtype).eps
    sizes = torch.where(a.isfinite(), a, 0).abs().flatten()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return (
            f"was recomputed with shape {tuple(b.shape)} and {b.dtype}, but the forward pass saw "
            f"{tuple(a.shape)} and {a.dtype}"
        )
    return (
        "was recomputed with another result than in the forward pass: the largest difference is "
        f"{(_wide(a) - _wide(b)).abs().max().item():.3g}"
    )
