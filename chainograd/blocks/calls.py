"""Calls of modules, intercepted while a step runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from torch.nn import Module

from chainograd.torch_internals.modules import called_attribute

# Note [Intercepted calls]
# 1. What a call of a module runs inside its hooks is an attribute of the module: `forward`, or what
#    `module.compile()` made. While a step runs, the attribute of each block is exchanged for a
#    function that hands the call on. Hooks of a block run outside of it, as before.
# 2. The attributes are put back at the end of the step, whatever happens.
# 3. A step may contain a chain whose steps call the same modules, and several threads may run such
#    steps at the same time. Then all of them share the function. It hands a call on to the
#    innermost step that runs in its own thread: see `Cutter`. The last step that ends puts the
#    attribute back.


class Handler(Protocol):
    """What calls of modules are handed on to."""

    def cuts(self) -> bool:
        """Return whether calls that are made now in this thread are for this handler."""
        ...

    def call(self, at: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what a call returns.

        Args:
            at: The module's place among the modules.
            original: ``original(*args, **kwargs)`` makes the call.
            args: The positional arguments.
            kwargs: The arguments by name.
        """
        ...


@contextmanager
def intercepted(modules: Sequence[Module], handler: Handler) -> Iterator[None]:
    """Hand calls of modules on to a handler, in a block: note [Intercepted calls]."""
    with ExitStack() as ends:
        for place, module in enumerate(modules):
            ends.enter_context(_exchanged(module, place, handler))
        yield


@contextmanager
def _exchanged(module: Module, place: int, handler: Handler) -> Iterator[None]:
    with _lock:
        exchange = _exchange(module)
        exchange.handlers.append((place, handler))
    try:
        yield
    finally:
        with _lock:
            exchange.handlers.remove((place, handler))
            if not exchange.handlers:
                exchange.put_back()


def _exchange(module: Module) -> _Exchange:
    """Exchange a module's attribute for a function that hands calls on, unless that is done."""
    name, table = called_attribute(module), vars(module)
    known = _known(table, name)
    if known is not None:
        return known
    original, token = getattr(module, name), _Token()

    @functools.wraps(original)
    def hand_on(*args: Any, **kwargs: Any) -> Any:
        for place, handler in reversed(_exchanges[token].handlers):
            if handler.cuts():
                return handler.call(place, original, args, kwargs)
        return original(*args, **kwargs)

    _exchanges[token] = exchange = _Exchange(table, name, table.get(name), [])
    setattr(hand_on, _TOKEN, token)
    table[name] = hand_on
    return exchange


def _known(table: dict[str, Any], name: str) -> _Exchange | None:
    token = getattr(table.get(name), _TOKEN, None)
    return None if token is None else _exchanges.get(token)


class _Token:
    """Stands for an exchanged attribute."""


class _Exchange(NamedTuple):
    """An attribute of a module that was exchanged.

    Attributes:
        table: The module's attributes.
        name: The attribute's name.
        own: What was there before; None if the class has it.
        handlers: The handlers, and the module's place among the modules of each.
    """

    table: dict[str, Any]
    name: str
    own: Any
    handlers: list[tuple[int, Handler]]

    def put_back(self) -> None:
        """Put back what was there before, unless somebody has exchanged it since."""
        if _known(self.table, self.name) is not self:
            return
        if self.own is None:
            del self.table[self.name]
        else:
            self.table[self.name] = self.own


# The functions do not hold the handlers themselves: the search for captured tensors, of a chain
# inside a step, would enter these.
_exchanges: WeakKeyDictionary[Any, _Exchange] = WeakKeyDictionary()
_TOKEN = "_chainograd_token"
_lock = threading.RLock()
