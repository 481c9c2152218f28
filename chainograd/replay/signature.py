"""What a graph is like, in two numbers: its operations, and what their derivatives use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from torch.autograd.function import BackwardCFunction

# Note [Signatures]
# A step may give the same state by another graph when it runs again: a flag that detaches a part, a
# factor for gradients alone that was changed in between. No comparison of states sees that. So the
# operations of a graph are compared too, in the order of the graph: how many there are, and what
# numbers they keep for their derivatives (the weight of an interpolation, the factor that a custom
# function notes in its `ctx`). Which leaves they lead to is compared by itself.

_NUMBERS = (bool, int, float, complex)


class Signature(NamedTuple):
    """What a graph is like.

    Attributes:
        nodes: How many operations it has.
        numbers: Stands for the numbers that they keep.
    """

    nodes: int
    numbers: int


def signature(nodes: Iterable[Any]) -> Signature:
    """Return the signature of a graph's nodes; it costs about a microsecond a node."""
    each = [_name_alone(type(node)) or (type(node).__name__, *_numbers(node)) for node in nodes]
    return Signature(len(each), hash(tuple(each)))


@lru_cache(maxsize=512)
def _name_alone(kind: type) -> tuple[str] | None:
    """Return the name of a kind of nodes that keep no numbers; None for others."""
    custom = issubclass(kind, BackwardCFunction) and not _is_librarys(kind)
    return None if custom or _names(kind) else (kind.__name__,)


def joined(parts: Iterable[Signature | None]) -> Signature | None:
    """Return the signature of several graphs, that of a step's slices; None if one has none."""
    known = list(parts)
    if None in known:
        return None
    return Signature(sum(part.nodes for part in known if part), hash(tuple(known)))


def _numbers(node: Any) -> Iterator[object]:
    kind = type(node)
    values: Iterable[Any] = [getattr(node, name) for name in _names(kind)]
    if issubclass(kind, BackwardCFunction) and not _is_librarys(kind):
        values = vars(node).values()
    for value in values:
        if isinstance(value, _NUMBERS):
            yield value if value == value else "nan"  # NaN is not equal to itself


@lru_cache(maxsize=512)
def _names(kind: type) -> tuple[str, ...]:
    """Return the names of what nodes of a kind keep, tensors and sizes aside."""
    kept = [name for name in dir(kind) if name.startswith("_saved_") and "size" not in name]
    return tuple(name for name in kept if not hasattr(kind, f"_raw{name}"))


@lru_cache(maxsize=512)
def _is_librarys(kind: Any) -> bool:
    """Return whether a custom function is torch's or the chain's own, which keep what they like."""
    module = str(getattr(kind._forward_cls, "__module__", ""))
    return module.partition(".")[0] in ("torch", "chainograd")
