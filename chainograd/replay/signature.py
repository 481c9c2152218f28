"""The signature of a graph: how many operations it has, and a hash of the numbers they save."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from torch.autograd.function import BackwardCFunction

from chainograd.torch_internals.autograd import forward_class
from chainograd.torch_internals.saved_tensors import saved_numbers

# Note [Signatures]
# A step that runs again may return the same state with another graph: because of a flag that
# detaches a part, or of a changed factor that only gradients use. No comparison of states shows
# that. So the operations of the graphs are compared too, in the order of the graph: how many there
# are, and the numbers they save for their derivatives (the weight of an interpolation, a factor
# that a custom function keeps in its `ctx`). The leaves of the graphs are compared separately.

_NUMBERS = (bool, int, float, complex)


class Signature(NamedTuple):
    """The signature of a graph.

    Attributes:
        nodes: How many operations it has.
        numbers: A hash of the numbers that the operations save.
    """

    nodes: int
    numbers: int


def signature(nodes: Iterable[Any]) -> Signature:
    """Return the signature of a graph with these nodes; it takes about a microsecond a node."""
    each = [_name_alone(type(node)) or (type(node).__name__, *_numbers(node)) for node in nodes]
    return Signature(len(each), hash(tuple(each)))


@lru_cache(maxsize=512)
def _name_alone(kind: type) -> tuple[str] | None:
    """Return the name of a kind of nodes that keep no numbers; None for others."""
    custom = issubclass(kind, BackwardCFunction) and not _is_library(kind)
    return None if custom or saved_numbers(kind) else (kind.__name__,)


def joined(parts: Iterable[Signature | None]) -> Signature | None:
    """Return one signature for the graphs of a step's slices; None if one of them is None."""
    known = list(parts)
    if None in known:
        return None
    return Signature(sum(part.nodes for part in known if part), hash(tuple(known)))


def _numbers(node: Any) -> Iterator[object]:
    kind = type(node)
    values: Iterable[Any] = [getattr(node, name) for name in saved_numbers(kind)]
    if issubclass(kind, BackwardCFunction) and not _is_library(kind):
        values = vars(node).values()
    for value in values:
        if isinstance(value, _NUMBERS):
            yield value if value == value else "nan"  # NaN differs from itself


@lru_cache(maxsize=512)
def _is_library(kind: Any) -> bool:
    """Return whether a custom function belongs to torch or to chainograd, and is not compared."""
    module = str(getattr(forward_class(kind), "__module__", ""))
    return module.partition(".")[0] in ("torch", "chainograd")
