"""Stand-ins: leaves that replace captured tensors inside the steps of a chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainograd.torch_internals import pytree
from chainograd.torch_internals.modes import function_modes

# Note [Stand-ins]
# A captured tensor that is not a leaf has a graph. If steps used the tensor itself, the backward
# pass of each step would run on into that graph. So the steps get a stand-in: a leaf with the same
# values and the same memory. Steps use a captured leaf as it is; its hooks are called once, when
# its whole gradient leaves the chain.


def current_stand_ins(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return, for each tensor, what the step of a chain that runs now uses in its place."""
    modes = [mode for mode in function_modes() if isinstance(mode, StandIns)]
    found = []
    for tensor in tensors:
        for mode in reversed(modes):
            tensor = mode.stand_ins.get(id(tensor), tensor)
        found.append(tensor)
    return found


class StandIns(TorchFunctionMode):
    """Replaces certain tensors by stand-ins in the arguments of every operation.

    Attributes:
        stand_ins: The stand-ins, by the ids of the tensors that they replace.
    """

    def __init__(self, stand_ins: dict[int, Tensor]) -> None:
        super().__init__()
        self.stand_ins = stand_ins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def replaced(value: Any) -> Any:
            return self.stand_ins.get(id(value), value) if isinstance(value, Tensor) else value

        args, kwargs = pytree.tree_map(replaced, (args, kwargs or {}))
        return func(*args, **kwargs)
