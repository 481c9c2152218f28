"""Side effects of extra runs on a step's own objects: undone, so that the plain loop's remain."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from chainograd.captured.names import names_in
from chainograd.errors import ChainError
from chainograd.replay.buffers import SMALL, put_back
from chainograd.torch_internals.modes import is_fake, no_dispatch
from chainograd.torch_internals.tensors import version

# Note [Side effects]
# 1. To measure a step for a byte budget, or to compare slices, the chain runs it more often than
#    the plain loop does. These runs must not show in a step that counts its calls, or in hooks that
#    collect or add up.
# 2. So attributes, closed-over and global variables, and the lists, dicts and sets in them are
#    restored: those of the step, of its modules and of their hooks. Other objects that a step
#    reaches may belong to other code, perhaps to another thread, and are left alone.
# 3. If one of these objects is a tensor that was changed in place, its values are restored if it is
#    small; if it is large, the runs are refused.

_CONTAINERS = (dict, list, set)
_FEW = 64  # entries up to which a container is searched for others
_CODE = (types.FunctionType, types.MethodType, functools.partial)


@contextmanager
def without_side_effects(step: object, others: Iterable[object]) -> Iterator[None]:
    """Undo what a block changes in the objects of a step: note [Side effects].

    Raises:
        ChainError: If the block changed a large tensor in place.
    """
    snapshot = _Snapshot()
    with no_dispatch():  # under FakeTensorMode, too, the step's own tensors may be real
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
        """Note what an object holds; yield the step's own objects among that."""
        if isinstance(thing, functools.partial):
            yield from (thing.func, *thing.args, *thing.keywords.values())
        elif isinstance(thing, types.MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, Tensor):
            self._tensor(thing)
            yield from self._table(vars(thing))
        elif isinstance(thing, Module):
            yield from self._module(thing)
        elif isinstance(thing, _CONTAINERS):
            yield from self._container(thing)
        elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
            yield from self._table(vars(thing))

    def _tensor(self, tensor: Tensor) -> None:
        if tensor.requires_grad or tensor.is_inference() or is_fake(tensor):
            return
        size = tensor.numel() * tensor.element_size() if tensor.layout is torch.strided else 0
        value = tensor.detach().clone() if 0 < size <= SMALL else None
        self.tensors.append((tensor, version(tensor), value))

    def _module(self, module: Module) -> Iterator[object]:
        yield from self._table(vars(module))
        tables = [table for table in vars(module).values() if isinstance(table, dict)]
        for table in tables:
            yield from self._table(table)
            yield from (v for v in table.values() if isinstance(v, (Module, *_CODE, Tensor)))

    def _function(self, function: types.FunctionType) -> Iterator[object]:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # the variable is assigned later
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
        if len(held) <= _FEW:
            yield from (value for value in values if isinstance(value, (Tensor, *_CONTAINERS)))

    def put_back(self) -> None:
        """Restore what all objects held."""
        for undo in self.undo:
            undo()
        changed = [
            (t, value)
            for t, count, value in self.tensors
            if value is not None and version(t) != count
        ]
        put_back([tensor for tensor, _ in changed], [value for _, value in changed])

    def refuse_changes(self) -> None:
        """Refuse changes of tensors whose earlier values were not copied."""
        for tensor, count, value in self.tensors:
            if value is None and version(tensor) != count:
                raise ChainError(
                    f"A step changed one of its own tensors in place, of shape "
                    f"{tuple(tensor.shape)}, in a run that only measures the step for a byte "
                    "budget or compares slices. Its values cannot be restored: only small strided "
                    "tensors are copied before such runs. Carry the tensor in the state, or name "
                    "a plan in place of the budget."
                )


def _own(value: object) -> Iterator[object]:
    """Yield a value if it is among the objects that may be restored."""
    if isinstance(value, (Tensor, Module, *_CONTAINERS, *_CODE)):
        yield value


def _is_data(value: object) -> bool:
    return not isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType))


def _fill(cell: Any, value: object) -> None:
    if cell.cell_contents is not value:
        cell.cell_contents = value


def _refill(thing: Any, held: Any) -> None:
    """Let a container hold again what it held, unless it still does."""
    if isinstance(thing, list):
        if len(thing) != len(held) or any(a is not b for a, b in zip(thing, held, strict=True)):
            thing[:] = held
        return
    if isinstance(thing, dict):
        same = all(k in thing and thing[k] is v for k, v in held.items())
    else:
        same = thing == held
    if len(thing) != len(held) or not same:
        thing.clear()
        thing.update(held)
