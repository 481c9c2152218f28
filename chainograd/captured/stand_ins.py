"""Tensors that stand in, inside the steps of a chain, for others outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

# Note [Stand-ins]
# Of a tensor that is not a leaf the steps get a stand-in: a detached alias that is a leaf.
# Otherwise each step's backward would run on into the graph outside the chain. A leaf is used as it
# is; its hooks wait until its whole gradient leaves the chain.


def standing_in(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what now stands in for each tensor: inside a step of a chain, perhaps another."""
    modes = [m for m in _get_current_function_mode_stack() if isinstance(m, StandIns)]
    found = []
    for tensor in tensors:
        for mode in reversed(modes):
            tensor = mode.stand_ins.get(id(tensor), tensor)
        found.append(tensor)
    return found


class StandIns(TorchFunctionMode):
    """Hands operations a stand-in wherever they are given one of certain tensors.

    Attributes:
        stand_ins: By the ids of the tensors.
    """

    def __init__(self, stand_ins: dict[int, Tensor]) -> None:
        super().__init__()
        self.stand_ins = stand_ins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def swap(value: Any) -> Any:
            return self.stand_ins.get(id(value), value) if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(swap, (args, kwargs or {}))
        return func(*args, **kwargs)
