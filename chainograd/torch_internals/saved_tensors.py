"""Nodes of autograd's graph: the tensors and numbers that they save for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]


def saved_tensors_are_hooked() -> bool:
    """Return whether `torch.autograd.graph.saved_tensors_hooks` of anybody are in force.

    Private: `torch._C._autograd._saved_tensors_hooks_is_enabled`, `_saved_tensors_hooks_disable`
    and `_saved_tensors_hooks_enable`. Public: `torch.autograd.graph.disable_saved_tensors_hooks`,
    which raises if hooks are in force and takes several times as long.
    """
    if not _autograd._saved_tensors_hooks_is_enabled():
        return False
    try:
        _autograd._saved_tensors_hooks_disable("")  # which torch refuses where there are some
    except RuntimeError:
        return True
    finally:
        _autograd._saved_tensors_hooks_enable()
    return False


def saves(node: Any, name: str) -> bool:
    """Return whether nodes of this kind save a tensor under a name.

    Private: the attributes `_raw_saved_*` of nodes. Public: none.
    """
    return hasattr(node, f"_raw_saved_{name}")


def saved_tensor(node: Any, name: str, default: Tensor) -> Tensor:
    """Return the tensor that a node saves under a name; the default if it saves none.

    Private: the attributes `_saved_*` of nodes. Public: none.
    """
    return getattr(node, f"_saved_{name}", default)


def hook_saved(
    node: Any, name: str, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
) -> None:
    """Replace what a node saves under a name by what ``pack`` returns for it.

    Raises:
        RuntimeError: If the saved tensor has hooks already; torch allows one pair.

    Private: the attributes `_raw_saved_*` of nodes. Public:
    `torch.autograd.graph.saved_tensors_hooks`, which cannot choose one tensor of one node.
    """
    getattr(node, f"_raw_saved_{name}").register_hooks(pack, unpack)


@lru_cache(maxsize=512)
def saved_numbers(kind: type) -> tuple[str, ...]:
    """Return the attributes in which nodes of a kind save what is neither a tensor nor a size.

    Private: the attributes `_saved_*` of nodes. Public: none.
    """
    names = [name for name in dir(kind) if name.startswith("_saved_") and "size" not in name]
    return tuple(name for name in names if not hasattr(kind, f"_raw{name}"))
