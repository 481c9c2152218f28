"""Count the arithmetic of convolutions and matrix products, which no load on a machine changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Formulas = Mapping[Any, Callable[..., int]]


class Work(TorchDispatchMode):
    """A mode that sums the floating-point operations of everything run in it, backward included.

    Torch's own `FlopCounterMode` does not work with a chain: it hooks every module, and its hooks
    refuse ``torch.autograd.grad`` inside a backward pass. Its formulas are used here.

    Attributes:
        by_operation: The sums so far, by the operation.
    """

    def __init__(self, formulas: Formulas = flop_registry) -> None:
        super().__init__()
        self.formulas = formulas
        self.by_operation: Counter[Any] = Counter()

    @property
    def flops(self) -> int:
        """The sum so far."""
        return self.by_operation.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            work = formula(*args, **(kwargs or {}), out_val=out)
            self.by_operation[func._overloadpacket] += work
        return out


@contextmanager
def working(formulas: Formulas = flop_registry) -> Iterator[Work]:
    """Count the work of a block; with chainograd's `FORMULAS`, that of attention on a CPU too."""
    with Work(formulas) as work:
        yield work
