"""What the search needs to know about a class before it opens the class's instances."""

from __future__ import annotations

import logging
import re
import types
import weakref
from typing import NamedTuple

import torch

from chainograd.captured.containers import CONTAINERS
from chainograd.captured.generators import GENERATORS
from chainograd.torch_internals.compiler import INTERNAL_MODULES

# Classes of plain values: numbers, text and descriptions of tensors.
PLAIN = frozenset((int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device,
                   torch.Size))  # fmt: skip
_CLOSED = (*PLAIN, logging.Logger, re.Pattern)


class Traits(NamedTuple):
    """What the search needs to know about a class.

    Attributes:
        tensor: Whether its instances are tensors.
        generator: Whether they draw random numbers.
        closed: Whether they hold nothing that the search looks for.
        namespace: Whether they are classes or modules of code. The search enters only those of
            their members that some code names.
        container: Whether they hold entries.
        module: Whether they are modules of torch.
        scripted: Whether they keep their attributes in C++.
        slots: Names of the attributes that are not in ``__dict__``.
    """

    tensor: bool
    generator: bool
    closed: bool
    namespace: bool
    container: bool
    module: bool
    scripted: bool
    slots: tuple[str, ...]


_known: weakref.WeakKeyDictionary[type, Traits] = weakref.WeakKeyDictionary()


def traits_of(cls: type) -> Traits:
    """Return the traits of a class."""
    if cls not in _known:
        _known[cls] = Traits(
            tensor=issubclass(cls, torch.Tensor),
            generator=issubclass(cls, GENERATORS),
            closed=issubclass(cls, _CLOSED) or _is_internal(cls),
            namespace=issubclass(cls, (type, types.ModuleType)),
            container=issubclass(cls, CONTAINERS),
            module=issubclass(cls, torch.nn.Module),
            scripted=issubclass(cls, torch.jit.ScriptModule),
            slots=_slots(cls),
        )
    return _known[cls]


def _is_internal(cls: type) -> bool:
    """Return whether the instances of a class belong to a compiler: graphs, guards, examples."""
    return str(cls.__module__).startswith(INTERNAL_MODULES) and not issubclass(
        cls, (torch.nn.Module, torch.Tensor)
    )


def _slots(cls: type) -> tuple[str, ...]:
    tables = [vars(base) for base in cls.__mro__ if "__slots__" in vars(base)]
    members = (item for table in tables for item in table.items())
    return tuple(name for name, m in members if isinstance(m, types.MemberDescriptorType))
