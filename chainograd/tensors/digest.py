"""Digests: a few bytes that almost surely differ if two tensors differ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from chainograd.tensors.parts import dense_parts
from chainograd.torch_internals.modes import no_dispatch

# Note [Digests]
# 1. A tensor's bytes are read as 64-bit integers, in the order of its indices. Each integer is
#    multiplied by a weight that depends on its position, and the products are added modulo 2^64. So
#    a digest changes if values change, and if the same values are permuted, rolled or flipped.
# 2. The weights are odd random numbers. The integers are summed in chunks, and the sums of the
#    chunks are weighted once more. With chunks, weights and products take a fixed amount of memory
#    and stay in the processor's cache: 1x3x1024x1024 floats take about 1 ms, less than comparing.

CHUNK = 1 << 16  # integers
Digest = tuple[tuple[Tensor, ...] | None, ...]  # for each leaf, one number for each dense part


def digest(leaves: Sequence[object]) -> Digest:
    """Return the digest of some leaves, with None for each leaf that is not a tensor."""
    return tuple(
        tuple(map(weighted_sum, dense_parts(leaf))) if isinstance(leaf, Tensor) else None
        for leaf in leaves
    )


def weighted_sum(tensor: Tensor) -> Tensor:
    """Return the weighted sum of a plain tensor's bytes, as one integer: note [Digests]."""
    words = _words(tensor)
    weights = _weights(CHUNK, words.device)
    chunks = [_dot(part, weights[: part.numel()]) for part in words.split(CHUNK)]
    if len(chunks) == 1:
        return chunks[0]
    return _dot(torch.stack(chunks), _weights(len(chunks), words.device))


def _dot(words: Tensor, weights: Tensor) -> Tensor:
    # Torch has `dot` for integers on the CPU only; elsewhere the products take memory.
    return torch.dot(words, weights) if words.device.type == "cpu" else (words * weights).sum()


def _words(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes as 64-bit integers, the last one padded with zeros."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.reshape(
        -1
    ).contiguous()  # an expanded number is one-dimensional, and not contiguous
    rest = flat.nbytes % 8
    if rest or flat.storage_offset() * flat.element_size() % 8:
        flat = flat.view(torch.uint8)
        padded = torch.zeros(
            flat.numel() + -flat.numel() % 8, dtype=torch.uint8, device=flat.device
        )
        padded[: flat.numel()] = flat
        flat = padded
    return flat.view(torch.int64)


@lru_cache(maxsize=64)
def _weights(count: int, device: torch.device) -> Tensor:
    with no_dispatch():  # the weights outlive the run: no meter counts them, and they are real
        generator = torch.Generator().manual_seed(20_240_501 + (count != CHUNK))
        weights = torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator, device="cpu")
        return (weights * 2 + 1).to(device)
