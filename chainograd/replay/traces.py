"""What runs that the plain loop has not would leave behind in a step's own objects: taken back."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Module
from torch.utils._mode_utils import no_dispatch

from chainograd.captured.parts import names_in
from chainograd.errors import ChainError
from chainograd.replay.buffers import SMALL, put_back

# Note [Traces]
# 1. To measure a step for a byte budget, or to compare slices, runs it more often than the plain
#    loop. A step that counts its calls, and hooks that collect or add up, must not see these runs.
# 2. So attributes, closed-over and global variables, and lists, dicts and sets in them are put back
#    as they were: those of the step, of its modules and of their hooks. Other objects that a step
#    reaches may belong to somebody else, perhaps to another thread, and are left alone.
# 3. A tensor among these that was changed in place gets its values back if it is small; the runs
#    are refused if it is large.

_CONTAINERS = (dict, list, set)


@contextmanager
def without_side_effects(step: object, others: Iterable[object]) -> Iterator[None]:
    """Put back what a block changes in the objects of a step: note [Traces].

    Raises:
        ChainError: If it changed a large tensor in place.
    """
    snapshot = _Snapshot()
    with no_dispatch():  # they are real tensors, under FakeTensorMode too
        snapshot.take([step, *others])
    try:
        yield
    finally:
        with no_dispatch():
            snapshot.put_back()
    snapshot.refuse_changes()


class _Snapshot:
    """What the objects of a step held."""

    def __init__(self) -> None:
        self.seen: dict[int, object] = {}
        self.undo: list[Callable[[], None]] = []
        self.tensors: list[tuple[Tensor, int, Tensor | None]] = []

    def take(self, things: Iterable[object]) -> None:
        stack = list(things)
        while stack:
            thing = stack.pop()
            if id(thing) in self.seen:
                continue
            self.seen[id(thing)] = thing
            stack.extend(self._opened(thing))

    def _opened(self, thing: Any) -> Iterator[object]:
        """Note what a thing holds; yield what else is the step's own."""
        if isinstance(thing, functools.partial):
            yield from (thing.func, *thing.args, *thing.keywords.values())
        elif isinstance(thing, types.MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, Tensor):
            if not (thing.requires_grad or thing.is_inference() or isinstance(thing, FakeTensor)):
                size = thing.numel() * thing.element_size() if thing.layout is torch.strided else 0
                value = thing.detach().clone() if 0 < size <= SMALL else None
                self.tensors.append((thing, thing._version, value))
            yield from self._table(vars(thing))
        elif isinstance(thing, Module):
            yield from self._table(vars(thing))
            tables = [table for table in vars(thing).values() if isinstance(table, dict)]
            for table in tables:
                yield from self._table(table)
                yield from (v for v in table.values() if isinstance(v, (Module, *_CODE, Tensor)))
        elif isinstance(thing, _CONTAINERS):
            yield from self._container(thing)
        elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
            yield from self._table(vars(thing))

    def _function(self, function: types.FunctionType) -> Iterator[object]:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # a name that is bound later
                continue
            self.undo.append(functools.partial(_fill, cell, value))
            yield from _own(value)
        scope = function.__globals__
        names = [name for name in names_in(function.__code__) if name in scope]
        values = {name: scope[name] for name in names if _is_data(scope[name])}
        self.undo.append(functools.partial(scope.update, values))
        for value in values.values():
            yield from _own(value)

    def _table(self, table: dict[str, Any]) -> Iterator[object]:
        yield from self._container(table)
        for value in table.values():
            yield from _own(value)

    def _container(self, thing: Any) -> Iterator[object]:
        held = thing.copy()
        self.undo.append(functools.partial(_refill, thing, held))
        values = held.values() if isinstance(held, dict) else held
        if len(held) <= 64:
            yield from (value for value in values if isinstance(value, (Tensor, *_CONTAINERS)))

    def put_back(self) -> None:
        """Let everything hold what it held."""
        for undo in self.undo:
            undo()
        changed = [
            (t, v) for t, version, v in self.tensors if v is not None and t._version != version
        ]
        put_back([tensor for tensor, _ in changed], [value for _, value in changed])

    def refuse_changes(self) -> None:
        """See that no tensor was changed whose values are not known any more."""
        for tensor, version, value in self.tensors:
            if value is None and tensor._version != version:
                raise ChainError(
                    f"A step changed a tensor of shape {tuple(tensor.shape)} in place that is its "
                    "own, while it was tried beforehand (for a byte budget, or to compare slices). "
                    "Carry the tensor in the state, or name a plan in place of the budget."
                )


_CODE = (types.FunctionType, types.MethodType, functools.partial)


def _own(value: object) -> Iterator[object]:
    """Yield a value if it is among what may be put back."""
    if isinstance(value, (Tensor, Module, *_CONTAINERS, *_CODE)):
        yield value


def _is_data(value: object) -> bool:
    return not isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType))


def _fill(cell: Any, value: object) -> None:
    if cell.cell_contents is not value:
        cell.cell_contents = value


def _refill(thing: Any, held: Any) -> None:
    same = len(thing) == len(held)
    if isinstance(thing, dict):
        same = same and all(k in thing and thing[k] is v for k, v in held.items())
        if not same:
            thing.clear()
            thing.update(held)
    elif isinstance(thing, list):
        if not (same and all(map(_is, thing, held))):
            thing[:] = held
    elif not same or thing != held:
        thing.clear()
        thing.update(held)


def _is(a: object, b: object) -> bool:
    return a is b
