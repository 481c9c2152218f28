"""What an object holds that a step could use."""

from __future__ import annotations

import contextvars
import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from chainograd.captured.containers import BARE, entries
from chainograd.captured.traits import PLAIN, Traits, traits_of
from chainograd.torch_internals.torchscript import ScriptMethod, scripted_contents


def contents(thing: Any, traits: Traits | None = None) -> Iterable[Any]:
    """Return what an object holds: entries, attributes, slots, closed-over variables.

    Not among them are the globals that a function names, for which `named_by` looks.
    """
    opened = _OPENED.get(type(thing))
    if opened is not None:
        return opened(thing)
    traits = traits or traits_of(type(thing))
    attributes = _attributes(thing, traits)
    if traits.container:
        return chain(entries(thing, PLAIN), attributes)
    if traits.scripted:
        return chain(attributes, scripted_contents(thing))
    if isinstance(thing, weakref.ref):
        return chain((thing(),), attributes)
    if isinstance(thing, functools.partial):
        return chain((thing.func, *thing.args, *thing.keywords.values()), attributes)
    return attributes


def _attributes(thing: Any, traits: Traits) -> Iterator[Any]:
    try:
        attributes = getattr(thing, "__dict__", {})
    except Exception:  # a placeholder may refuse every question; what it holds cannot be seen
        attributes = {}
    for value in attributes.values():
        if type(value) not in BARE or value:  # a module has a dozen empty containers
            yield value
    for slot in traits.slots:
        try:
            yield object.__getattribute__(thing, slot)
        except AttributeError:  # no value was assigned to it
            continue


def _contents_of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the variable is assigned later; it holds nothing yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from function.__dict__.values()


def _referent(proxy: Any) -> Iterator[Any]:
    try:
        yield proxy.__init__.__self__
    except ReferenceError:
        return


_OPENED: dict[type, Callable[[Any], Iterable[Any]]] = {
    types.FunctionType: _contents_of_function,
    types.MethodType: lambda method: (method.__self__, method.__func__),
    types.BuiltinMethodType: lambda method: (method.__self__,),
    types.MethodWrapperType: lambda method: (method.__self__,),
    weakref.ProxyType: _referent,
    weakref.CallableProxyType: _referent,
    staticmethod: lambda method: (method.__func__,),
    classmethod: lambda method: (method.__func__,),
    property: lambda computed: (computed.fget,),
    contextvars.ContextVar: lambda variable: (variable.get(None),),
    ScriptMethod: scripted_contents,
}
