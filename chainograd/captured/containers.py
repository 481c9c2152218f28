"""Containers: their entries, and a sample of the entries of a big container."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

# Note [Big containers]
# 1. An object of a step may hold a data set: 500,000 captions, each in a dict. The search must not
#    walk them all in every call. If a container has more than `_FEW` entries, a sample is walked
#    first: up to `_EACH` entries of each type among its entries, or among `_LOOKED_AT` of them. The
#    other entries are walked only if the sample leads to something new that the chain must know.
# 2. Types are read of all of up to `_LOOKED_AT` entries. So a tensor or a module among any number
#    of strings and numbers is found there.
# 3. The sample can miss a tensor: one that requires a gradient in one of a thousand dicts. Such a
#    tensor is refused when a step uses it, because it is an unknown leaf of the step's graph.

_FEW = 64
_LOOKED_AT = 1024
_EACH = 16
CONTAINERS = (dict, list, tuple, set, frozenset, deque, types.MappingProxyType)
BARE = frozenset((*CONTAINERS, OrderedDict))  # classes without attributes, only entries


def is_big(container: Any) -> bool:
    """Return whether a container has so many entries that a sample is walked first."""
    return size(container) > _FEW


def size(container: Any) -> int:
    """Return how many entries a container holds."""
    return len(container) if type(container) in BARE else _base(container).__len__(container)


def entries(container: Any, plain: frozenset[type]) -> Iterable[Any]:
    """Return the entries of a container, and the keys of a dict unless all are plain values."""
    if not isinstance(container, (dict, types.MappingProxyType)):
        if type(container) in BARE:
            return container
        return _base(container).__iter__(container)  # the subclass's own might load data
    if isinstance(container, types.MappingProxyType):
        return container.values()
    values = dict.values(container)
    if plain.issuperset(map(type, dict.__iter__(container))):
        return values
    return chain(dict.__iter__(container), values)


def sample(container: Any, plain: frozenset[type]) -> list[Any]:
    """Return entries of a big container, some of each type that is not plain."""
    some = _some(container)
    if plain.issuperset(map(type, some)):
        return []
    of_type: dict[type, list[Any]] = {}
    for entry in some:
        of_type.setdefault(type(entry), []).append(entry)
    return [
        entry
        for cls, alike in of_type.items()
        if cls not in plain
        for entry in alike[:: -(-len(alike) // _EACH)]
    ]


def _some(container: Any) -> list[Any]:
    """Return up to `_LOOKED_AT` entries, from where the container returns them quickly."""
    if isinstance(container, (list, tuple)):
        whole: Any = _base(container)
        if size(container) <= _LOOKED_AT:
            return list(whole.__iter__(container))
        step = -(-size(container) // _LOOKED_AT)
        return list(whole.__getitem__(container, slice(None, None, step)))
    if isinstance(container, (set, frozenset)):
        return list(islice(_base(container).__iter__(container), _LOOKED_AT))
    if isinstance(container, types.MappingProxyType):
        return list(islice(container.values(), _LOOKED_AT))
    if isinstance(container, dict):  # some subclasses of dict cannot be reversed
        values = dict.values(container)
        ends: list[Any] = [dict.__iter__(container), values, reversed(values)]
    else:
        ends = [container, reversed(container)]
    return [entry for end in ends for entry in islice(end, _LOOKED_AT // 2)]


def _base(container: Any) -> Any:
    return next(base for base in CONTAINERS if isinstance(container, base))
