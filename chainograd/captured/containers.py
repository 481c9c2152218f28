"""What containers hold; of big ones, a few entries that speak for all."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

# Note [Big containers]
# 1. A step's object may hold a data set: 500,000 captions, a dict each. They are not walked in
#    every call. Of a container with more than `_FEW` entries a sample is walked first: up to
#    `_EACH` entries of each type among its entries, or among `_LOOKED_AT` of them. The rest is
#    walked only if the sample leads to something the chain must know of and has not met yet.
# 2. Numbers, strings and the like are told by their types, for which all of up to `_LOOKED_AT`
#    entries are looked at: a tensor or a module among any number of strings is found there.
# 3. What that misses (one trainable tensor in one of a thousand dicts) is refused when a step uses
#    it: its leaf is in the step's graph and not among those that are known.

_FEW = 64
_LOOKED_AT = 1024
_EACH = 16
CONTAINERS = (dict, list, tuple, set, frozenset, deque, types.MappingProxyType)
BARE = frozenset((*CONTAINERS, OrderedDict))  # nothing but entries: no attributes


def is_big(container: Any) -> bool:
    """Return whether a sample of a container is to be walked before its other entries."""
    return size(container) > _FEW


def size(container: Any) -> int:
    """Return how many entries a container holds."""
    return len(container) if type(container) in BARE else _base(container).__len__(container)


def entries(container: Any, plain: frozenset[type]) -> Iterable[Any]:
    """Return what a container holds, keys too where they are more than plain values."""
    if not isinstance(container, (dict, types.MappingProxyType)):
        if type(container) in BARE:
            return container
        return _base(container).__iter__(container)  # a subclass may load what it iterates over
    if isinstance(container, types.MappingProxyType):
        return container.values()
    values = dict.values(container)
    if plain.issuperset(map(type, dict.__iter__(container))):
        return values
    return chain(dict.__iter__(container), values)


def sample(container: Any, plain: frozenset[type]) -> list[Any]:
    """Return entries of each type that a big container holds and that is not plain."""
    some = _some(container)
    if plain.issuperset(map(type, some)):
        return []
    kinds: dict[type, list[Any]] = {}
    for entry in some:
        kinds.setdefault(type(entry), []).append(entry)
    return [
        entry
        for kind, alike in kinds.items()
        if kind not in plain
        for entry in alike[:: -(-len(alike) // _EACH)]
    ]


def _some(container: Any) -> list[Any]:
    """Return up to `_LOOKED_AT` entries, from wherever a container is quick to reach."""
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
    if isinstance(container, dict):  # some of its kinds cannot be reversed themselves
        values = dict.values(container)
        ends: list[Any] = [dict.__iter__(container), values, reversed(values)]
    else:
        ends = [container, reversed(container)]
    return [entry for end in ends for entry in islice(end, _LOOKED_AT // 2)]


def _base(container: Any) -> Any:
    return next(base for base in CONTAINERS if isinstance(container, base))
