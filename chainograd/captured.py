"""Tensors that a step uses without being handed them: found beforehand, or refused afterwards."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from chainograd.errors import ChainError
from chainograd.sharded import sharded_modules, with_shards

# Note [Captured tensors]
# 1. A gradient reaches a tensor only if the chain's autograd function has it as an input. What a
#    step captures is therefore searched for before the first run (`find_captured`).
# 2. A search can miss something (a tensor behind a property, in a C extension, in a class). So
#    the graph of every step is searched for leaves that are not inputs.

_ATOMS = (int, float, complex, str, bytes, bool, type(None), type, types.ModuleType,
          types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size,
          logging.Logger, re.Pattern)  # fmt: skip
_PLAIN = frozenset(_ATOMS)
AccumulateGrad: type = torch._C._functions.AccumulateGrad  # pyright: ignore
_CONTAINERS = frozenset((dict, OrderedDict, list, tuple, set))
_LIBRARIES = {"torch", "numpy", "builtins", "math", "functools", "itertools", "random"}
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep


class Captured(NamedTuple):
    """What a step can reach that the chain must know of.

    Attributes:
        tensors: Those that require a gradient.
        buffers: Those of modules in training.
        sharded: Modules that FSDP2 shards.
        modes: All modules, and whether each is in training.
        devices: Where tensors are, those that require no gradient too.
    """

    tensors: list[Tensor]
    buffers: list[Tensor]
    sharded: list[Any]
    modes: list[tuple[torch.nn.Module, bool]]
    devices: set[torch.device]


def find_captured(step: object, others: Iterable[object] = ()) -> Captured:
    """Return what ``step``, and others that it is handed, can reach and the chain must know of.

    Each thing once. Follows what a step is commonly made of: modules with their parameters,
    buffers, hooks and plain attributes, closures, bound methods, partials, default arguments, the
    globals that a function names, containers, and attributes of objects. Functions of numerical
    libraries are not entered, nor what Python's own modules hold. Costs some milliseconds for a
    network of hundreds of modules.

    Raises:
        ChainError: If a module is found that would make the gradients wrong.
    """
    found, buffers, modules = [], [], []
    devices: set[torch.device] = set()
    seen: set[int] = set()
    stack: list[Any] = [step, *others]
    while stack:
        thing = stack.pop()
        # Most things are plain, and `isinstance` asks for one kind after the other.
        if type(thing) in _PLAIN or id(thing) in seen or isinstance(thing, _ATOMS):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            if is_lazy(thing):
                raise ChainError(
                    "The step uses a lazy module whose parameters have no shape yet. Run it once, "
                    "under `torch.no_grad()`, before the chain."
                )
            devices.add(thing.device)
            if thing.requires_grad:
                found.append(thing)
        else:
            _refuse_static_graph(thing)
            if isinstance(thing, torch.nn.Module):
                modules.append(thing)
                if thing.training:
                    buffers += [buffer for buffer in thing._buffers.values() if buffer is not None]
            # Containers made on the fly must stay alive, or their ids would be used again.
            stack.extend(parts(thing))
    sharded = sharded_modules(modules)
    modes = [(module, module.training) for module in modules]
    return Captured(with_shards(found, sharded), buffers, sharded, modes, devices)


def _refuse_static_graph(thing: object) -> None:
    # DDP then counts a parameter's hook calls, M of them in the plain loop, and reduces at the
    # last one. A chain sums up inside and calls each hook once: nothing would be reduced.
    if type(thing).__name__ == "DistributedDataParallel" and getattr(thing, "static_graph", False):
        raise ChainError(
            "The step calls a DistributedDataParallel module with `static_graph=True`, which would "
            "not average the chain's gradients over the processes. Leave `static_graph` out, or "
            "wrap the module around the chain: DistributedDataParallel(sampler), where the "
            "sampler's `forward` calls the chain."
        )


def parts(thing: Any) -> Iterator[Any]:
    """Yield what a thing is made of, as far as a step could use it."""
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, functools.partial):
        yield thing.func
        yield from thing.args
        yield from thing.keywords.values()
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
        yield thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _parts_of_function(thing)
    else:
        for value in getattr(thing, "__dict__", {}).values():
            if type(value) in _CONTAINERS and not value:  # a module has a dozen
                continue
            yield value
        for cls in type(thing).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                member = cls.__dict__.get(name)
                if isinstance(member, types.MemberDescriptorType) and hasattr(thing, name):
                    yield getattr(thing, name)
        # What a callable object's class names as globals.
        call = vars(type(thing)).get("__call__")
        if isinstance(call, types.FunctionType):
            yield call
        forward = getattr(type(thing), "forward", None)
        if isinstance(thing, torch.nn.Module) and isinstance(forward, types.FunctionType):
            yield forward


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is bound later; nothing to find yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if _is_pythons(function.__code__.co_filename):  # what it names is `sys.modules` and the like
        return
    names = set(_names(function.__code__))
    scope = function.__globals__
    for name in names & scope.keys():
        value = scope[name]
        if isinstance(value, types.ModuleType):
            if not _holds_nothing(value):
                yield from (vars(value)[inner] for inner in names & vars(value).keys())
        else:
            yield value


@functools.cache
def _is_pythons(path: str) -> bool:
    """Return whether a file is of Python's own library."""
    return path.startswith((_PYTHON, "<frozen")) and "site-packages" not in path


def _holds_nothing(module: types.ModuleType) -> bool:
    """Return whether a module is one where no step keeps tensors."""
    if module.__name__.partition(".")[0] in _LIBRARIES:
        return True
    return module.__name__ in sys.builtin_module_names or _is_pythons(
        getattr(module, "__file__", None) or ""
    )


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the global and attribute names in a function's code, inner functions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
