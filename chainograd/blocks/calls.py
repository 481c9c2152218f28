"""Calls of modules, intercepted while a step runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn import Module

from chainograd.torch_internals.modules import called_attribute

Handler = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

# Note [Intercepted calls]
# 1. What a call of a module runs inside its hooks is an attribute of the module: `forward`, or what
#    `module.compile()` made. While a step runs, the attribute of each block is exchanged for a
#    function that hands the call on. Hooks of a block run outside of it, as before.
# 2. The attributes are put back at the end of the step, whatever happens.
# 3. A step may contain a chain whose steps call the same modules. Then both have exchanged the
#    attribute, and only the innermost running step may hand calls on: see `Cutter`.


@contextmanager
def intercepted(modules: Sequence[Module], handler: Handler) -> Iterator[None]:
    """Hand calls of modules to a function for a block: note [Intercepted calls].

    Args:
        modules: The modules.
        handler: ``handler(place, original, args, kwargs)`` returns what the call returns.
            ``place`` is the module's place among ``modules``, and ``original(*args, **kwargs)``
            makes the call.
    """
    exchanged: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for place, module in enumerate(modules):
            name, table = called_attribute(module), vars(module)
            original = getattr(module, name)
            exchanged.append((table, name, table.get(name)))
            table[name] = _handing_on(handler, place, original)
        yield
    finally:
        for table, name, own in reversed(exchanged):
            if own is None:
                table.pop(name, None)
            else:
                table[name] = own


def _handing_on(handler: Handler, place: int, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def hand_on(*args: Any, **kwargs: Any) -> Any:
        return handler(place, original, args, kwargs)

    return hand_on
