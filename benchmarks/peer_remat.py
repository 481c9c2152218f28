"""torch-remat around blocks, with attention as a region that it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from models_of_today import Built
from peer_blocks import BlockCall, CallBlock, outputs
from peer_host import Host
from torch import Tensor
from torch.nn import functional as F


def remat(_: list[BlockCall]) -> CallBlock:
    """Checkpoint each block by torch-remat, which takes no None among what a block returns."""
    import torch_remat  # pyright: ignore[reportMissingImports]

    def call(block: Any, *args: Any) -> Any:
        shape: list[Any] = []

        def tensors(*args: Any) -> tuple[Tensor, ...]:
            shape[:] = [block(*args)]
            found = tuple(t for t in outputs(shape[0]) if t is not None)
            shape[:] = [isinstance(shape[0], tuple), [t is None for t in outputs(shape[0])]]
            return found

        found = iter(torch_remat.checkpoint()(tensors)(*args))
        several, missing = shape
        out = tuple(None if none else next(found) for none in missing)
        return out if several else out[0]

    return call


@contextmanager
def attention_is_a_region(built: Built, host: Host) -> Iterator[None]:
    """Keep the graph of attention in torch-remat's checkpoints, and its output for the rest."""
    import torch_remat  # pyright: ignore[reportMissingImports]

    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Tensor:
        name = f"attention of {query.shape[-2]} to {key.shape[-2]}"  # one of a kind in a block
        out = torch_remat.region(plain, name, recompute=False)(query, key, *args, **options)
        torch_remat.recompute_needs_tensor(out)
        return out

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield


def is_installed(_: list[BlockCall]) -> bool:
    """Return whether torch-remat can be imported."""
    return find_spec("torch_remat") is not None
