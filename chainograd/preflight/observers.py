"""Shows every operation of a step to observers."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainograd.torch_internals import pytree


class Call(NamedTuple):
    """A call of an operation; ``given`` are the tensors among its arguments."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]

    @property
    def name(self) -> str:
        """The operation's name; `__get__` for a property."""
        return getattr(self.func, "__name__", "")

    def changed(self) -> list[Tensor]:
        """Return the tensors that the operation changes in place, judging by its name."""
        name, targets = self.name, [self.kwargs.get("out")]
        named = name.endswith("_") and not name.endswith("__") and name not in _OF_NO_VALUES
        inplace = named or name in _AUGMENTED or self.kwargs.get("inplace") is True
        if inplace:
            targets.append(self.args[:1])
        return _tensors(targets)


_OF_NO_VALUES = {"requires_grad_", "detach_", "share_memory_", "rename_"}
_AUGMENTED = {"__setitem__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}


class Observer(Protocol):
    """Sees each operation before and after it runs."""

    def before(self, call: Call) -> None:
        """See an operation before it runs."""

    def after(self, call: Call, out: list[Tensor]) -> None:
        """See an operation after it has run, and the tensors that it returned."""


class Observing(TorchFunctionMode):
    """Shows every operation to observers."""

    def __init__(self, *observers: Observer) -> None:
        super().__init__()
        self.observers = observers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {}, _tensors((args, kwargs)))
        for observer in self.observers:
            observer.before(call)
        result = func(*args, **call.kwargs)
        out = _tensors(result)
        for observer in self.observers:
            observer.after(call, out)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
