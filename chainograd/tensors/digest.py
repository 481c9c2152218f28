"""A few bytes in place of a tensor, which almost surely change when the tensor does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

from chainograd.tensors.parts import dense_parts

# Note [Digests]
# 1. A tensor's bytes are read as integers of 64 bits, in the order of its indices. Each is weighed
#    by its place, and the products are added up without carrying. So a digest sees other values,
#    and the same values in another order: a permuted, rolled or flipped state.
# 2. Within a chunk the weights are odd random numbers; the sums of the chunks are weighed by odd
#    random numbers too. Chunks, so that weights and products take a fixed amount of memory and
#    stay in the processor's cache: 1x3x1024x1024 floats take about 1 ms, less than to compare them.

CHUNK = 1 << 16  # integers
Digest = tuple[tuple[Tensor, ...] | None, ...]  # for each leaf, of its dense parts


def digest(leaves: Sequence[object]) -> Digest:
    """Return a digest of each tensor among the leaves, None for what is no tensor."""
    return tuple(
        tuple(map(weighed_bits, dense_parts(leaf))) if isinstance(leaf, Tensor) else None
        for leaf in leaves
    )


def weighed_bits(tensor: Tensor) -> Tensor:
    """Return the sum of a plain tensor's bits, weighed by their places, as one integer."""
    words = _words(tensor)
    weights = _weights(CHUNK, words.device)
    chunks = [_weighed(part, weights[: part.numel()]) for part in words.split(CHUNK)]
    if len(chunks) == 1:
        return chunks[0]
    return _weighed(torch.stack(chunks), _weights(len(chunks), words.device))


def _weighed(words: Tensor, weights: Tensor) -> Tensor:
    # A product of integers without memory for its terms is there on the CPU alone.
    return torch.dot(words, weights) if words.device.type == "cpu" else (words * weights).sum()


def _words(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes as integers of 64 bits, the last one filled up with zeros."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.reshape(-1).contiguous()  # one number expanded is flat already, with gaps
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
    with no_dispatch():  # they are not the run's own: no meter counts them, and none are fake
        generator = torch.Generator().manual_seed(20_240_501 + (count != CHUNK))
        weights = torch.randint(-(1 << 62), 1 << 62, (count,), generator=generator) * 2 + 1
        return weights.to(device)
