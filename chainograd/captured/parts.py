"""What a thing is made of, as far as a step could use it."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import re
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from chainograd.captured.containers import BARE, CONTAINERS, entries
from chainograd.captured.generators import GENERATORS
from chainograd.captured.scripted import ScriptMethod, scripted_parts

_LIBRARIES = frozenset(
    ("torch", "numpy", "builtins", "math", "functools", "itertools", "random", "chainograd")
)  # where no step keeps tensors
_INTERNAL = ("torch._dynamo", "torch._inductor", "torch._functorch", "torch._subclasses",
             "torch.fx")  # fmt: skip
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
PLAIN = frozenset((int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device,
                   torch.Size))  # fmt: skip
_ATOMS = (*PLAIN, logging.Logger, re.Pattern)


class Kind(NamedTuple):
    """What is to be known of a class before its instances are searched.

    Attributes:
        tensor: Whether they are tensors.
        generator: Whether they draw random numbers.
        atom: Whether there is nothing to be found in them.
        space: Whether they are classes or modules, of which only what is named is searched.
        container: Whether they hold entries.
        module: Whether they are modules of torch.
        scripted: Whether they keep what they hold in C++.
        slots: Names of what they hold beside their ``__dict__``.
    """

    tensor: bool
    generator: bool
    atom: bool
    space: bool
    container: bool
    module: bool
    scripted: bool
    slots: tuple[str, ...]


def _is_internal(cls: type) -> bool:
    """Return whether objects of a class are a compiler's own: graphs, guards, examples."""
    return str(cls.__module__).startswith(_INTERNAL) and not issubclass(
        cls, (torch.nn.Module, torch.Tensor)
    )


_kinds: weakref.WeakKeyDictionary[type, Kind] = weakref.WeakKeyDictionary()


def kind_of(cls: type) -> Kind:
    """Return what is to be known of a class."""
    if cls not in _kinds:
        _kinds[cls] = Kind(
            tensor=issubclass(cls, torch.Tensor),
            generator=issubclass(cls, GENERATORS),
            atom=issubclass(cls, _ATOMS) or _is_internal(cls),
            space=issubclass(cls, (type, types.ModuleType)),
            container=issubclass(cls, CONTAINERS),
            module=issubclass(cls, torch.nn.Module),
            scripted=issubclass(cls, torch.jit.ScriptModule),
            slots=_slots(cls),
        )
    return _kinds[cls]


def _slots(cls: type) -> tuple[str, ...]:
    tables = [vars(base) for base in cls.__mro__ if "__slots__" in vars(base)]
    members = (item for table in tables for item in table.items())
    return tuple(name for name, m in members if isinstance(m, types.MemberDescriptorType))


def parts(thing: Any, kind: Kind | None = None) -> Iterator[Any]:
    """Yield what a thing is made of, as far as a step could use it.

    Not what a function names: that depends on what else is reached (`named_by`).
    """
    cls = type(thing)
    opened = _OPENED.get(cls)
    if opened is not None:
        yield from opened(thing)
        return
    kind = kind or kind_of(cls)
    if kind.container:
        yield from entries(thing, PLAIN)
    elif isinstance(thing, weakref.ref):
        yield thing()
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    for value in getattr(thing, "__dict__", {}).values():
        if type(value) not in BARE or value:  # a module has a dozen empty ones
            yield value
    for slot in kind.slots:
        try:
            yield object.__getattribute__(thing, slot)
        except AttributeError:  # it was given no value
            continue
    if kind.scripted:
        yield from scripted_parts(thing)


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is bound later; nothing to find yet
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
    types.FunctionType: _parts_of_function,
    types.MethodType: lambda method: (method.__self__, method.__func__),
    types.BuiltinMethodType: lambda method: (method.__self__,),
    types.MethodWrapperType: lambda method: (method.__self__,),
    weakref.ProxyType: _referent,
    weakref.CallableProxyType: _referent,
    staticmethod: lambda method: (method.__func__,),
    classmethod: lambda method: (method.__func__,),
    property: lambda computed: (computed.fget,),
    contextvars.ContextVar: lambda variable: (variable.get(None),),
    ScriptMethod: scripted_parts,
}


def named_by(function: types.FunctionType) -> Iterator[Any]:
    """Yield the globals that a function's code names, and what it names of modules."""
    scope = function.__globals__
    # `functools.wraps` copies `__module__`, but nobody changes whose globals a function has.
    path = function.__code__.co_filename
    # Code without a file, as in an example of a docstring, is not its module's own.
    if (_is_library(str(scope.get("__name__"))) and path[0] != "<") or _is_pythons(path):
        return
    names = names_in(function.__code__)
    for name in names:
        if name in scope:
            value = scope[name]
            if isinstance(value, types.ModuleType):
                yield from _named_of(value, names, set())
            else:
                yield value
        else:  # perhaps what it imports itself
            for whole in (name, f"{scope.get('__package__')}.{name}"):
                module = sys.modules.get(whole)
                if isinstance(module, types.ModuleType):
                    yield from _named_of(module, names, set())


def _named_of(module: types.ModuleType, names: frozenset[str], seen: set[int]) -> Iterator[Any]:
    if id(module) in seen or holds_nothing(module):
        return
    seen.add(id(module))
    for name in names & vars(module).keys():
        value = vars(module)[name]
        if isinstance(value, types.ModuleType):
            yield from _named_of(value, names, seen)
        else:
            yield value


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


@functools.cache
def _is_pythons(path: str) -> bool:
    """Return whether a file is of Python's own library."""
    return path.startswith((_PYTHON, "<frozen")) and "site-packages" not in path


def holds_nothing(space: types.ModuleType | type) -> bool:
    """Return whether a module, or the module of a class, is one where no step keeps tensors."""
    if isinstance(space, type):
        name = str(space.__module__)  # some of those made in C have a descriptor there
        module = sys.modules.get(name)
    else:
        name, module = space.__name__, space
    if _is_library(name) or name in sys.builtin_module_names:
        return True
    return _is_pythons(getattr(module, "__file__", None) or "")


@functools.lru_cache(maxsize=10_000)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Return the global and attribute names in a function's code, inner functions included."""
    inner = (names_in(constant) for constant in code.co_consts if type(constant) is types.CodeType)
    return frozenset(code.co_names).union(*inner)
