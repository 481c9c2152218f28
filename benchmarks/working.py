"""Count the arithmetic of convolutions and matrix products, which no load on a machine changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Work(TorchDispatchMode):
    """A mode that sums the floating-point operations of everything run in it, backward included.

    Torch's own `FlopCounterMode` does not work with a chain: it hooks every module, and its hooks
    refuse ``torch.autograd.grad`` inside a backward pass. Its formulas are used here.

    Attributes:
        flops: The sum so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def working() -> Iterator[Work]:
    """Count the work of a block."""
    with Work() as work:
        yield work
