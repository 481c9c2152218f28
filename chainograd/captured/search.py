"""A walk through all that a step can reach."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from chainograd.captured.containers import BARE, entries, is_big, sample, size
from chainograd.captured.generators import is_own
from chainograd.captured.parts import PLAIN, Kind, holds_nothing, kind_of, named_by, names_in, parts
from chainograd.captured.wrappers import (
    is_compiled,
    is_wrapper,
    pass_counter,
    refuse_partitioned,
    refuse_wrapper,
    uses_cuda_graphs,
)
from chainograd.errors import ChainError

# Note [The search]
# 1. Modules are searched whole. Of other things: containers (of big ones first a sample, note
#    [Big containers]), closures, default arguments, attributes, slots, what weak references lead
#    to, and all that classes hold which is no function.
# 2. Of classes' functions, and of modules of code that something holds, only those are searched
#    that some code which was reached names; of functions the globals that they name, and what
#    they name of modules. Functions of numerical libraries name nothing.

_MANY = 4096  # in more entries than that, tensors that require no gradient are not looked for
_SCRIPTED = (torch.jit.ScriptFunction, torch._C.ScriptMethod)
_CALLED = frozenset(("__call__", "forward", "__getattr__", "__getitem__", "__iter__", "__next__",
                     "__enter__", "__exit__"))  # fmt: skip  # without being named
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property,
              functools.partialmethod)  # fmt: skip


class Search:
    """A walk through all that a step can reach, and what was found on it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.generators: list[object] = []
        self.modules: list[Module] = []
        self.modes: list[tuple[Module, bool]] = []
        self.devices: set[torch.device] = set()
        self.scripted = self.compiled = self.cuda_graphs = False
        self.counts_passes: str | None = None
        # By ids. What is made on the fly must stay alive, or its id would be used again.
        self.seen: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.big: list[Any] = []  # containers that were met and not entered yet
        self.frozen = 0  # tensors met that require no gradient
        self.names: set[str] = set(_CALLED)
        self.spaces: dict[types.ModuleType | type, None] = {}
        self.kinds: dict[type, Kind] = {}
        self.wrappers: set[type] = set()  # among them
        self.followed = (0, 0)

    def walk(self, things: Iterable[Any]) -> None:
        """Go through things and all that they are made of, big containers left for later."""
        stack, seen, kinds = self.stack, self.seen, self.kinds
        stack.extend(things)
        while stack:
            thing = stack.pop()
            cls = type(thing)
            if cls in PLAIN or id(thing) in seen:
                continue
            if cls is tuple and len(thing) < 8 and PLAIN.issuperset(map(type, thing)):
                continue  # a size, as a convolution has four
            seen[id(thing)] = thing
            kind = kinds.get(cls) or self._new_kind(cls)
            if kind.tensor:
                self._note_tensor(thing)
            elif kind.generator:
                if is_own(thing):
                    self.generators.append(thing)
            elif kind.space:
                self._note_space(thing)
            elif kind.container and is_big(thing):
                self.big.append(thing)
            elif cls in BARE:
                stack.extend(entries(thing, PLAIN))
            elif not kind.atom:
                if kind.module:
                    self._note_module(thing)
                elif cls is types.FunctionType:
                    self.names |= names_in(thing.__code__)
                    if is_compiled(thing):
                        self.compiled = True
                        self.cuda_graphs = self.cuda_graphs or uses_cuda_graphs(thing)
                    stack.extend(named_by(thing))
                stack.extend(parts(thing, kind))

    def enter_big(self) -> None:
        """Walk the big containers that were met, as far as note [Big containers] says."""
        while self.big:
            container = self.big.pop()
            before = self._found(container)
            waiting, self.big = self.big, []
            self.walk(sample(container, PLAIN))
            self.enter_big()  # those in the sample, which speak for others like them
            self.big = waiting
            if self._found(container) != before:
                self.walk(parts(container))

    def _found(self, container: Any) -> tuple[int, ...]:
        return len(self.tensors), len(self.modules), self.frozen * (size(container) <= _MANY)

    def follow_names(self) -> bool:
        """Enter what code names of the classes and modules that were met; return if it may go on.

        Names lead to code with other names, and to other classes.
        """
        followed = len(self.names), len(self.spaces)
        if followed == self.followed:
            return False
        self.followed = followed
        for space in list(self.spaces):
            self.walk([value for name, value in vars(space).items() if name in self.names])
        return True

    def _note_tensor(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise ChainError(
                "The step uses a lazy module whose parameters have no shape yet. Run it once, "
                "under `torch.no_grad()`, before the chain."
            )
        refuse_partitioned(tensor)
        self.devices.add(tensor.device)
        if tensor.requires_grad:
            self.tensors.append(tensor)
        else:
            self.frozen += 1

    def _note_space(self, space: types.ModuleType | type) -> None:
        if holds_nothing(space):
            return
        self.spaces[space] = None
        if isinstance(space, type):
            self.stack.extend(space.__mro__)
            self.stack.extend(
                value
                for name, value in vars(space).items()
                if not name.startswith("__") and not isinstance(value, _FUNCTIONS)
            )

    def _new_kind(self, cls: type) -> Kind:
        kind = self.kinds[cls] = kind_of(cls)
        if not kind.atom:
            self.stack.extend(cls.__mro__)
        self.scripted = self.scripted or kind.scripted or issubclass(cls, _SCRIPTED)
        if kind.module:
            self.counts_passes = self.counts_passes or pass_counter(cls)
            # It may be one of torch's that was decorated, whose class holds nothing else.
            self.stack.append(getattr(cls, "forward", None))
            if is_wrapper(cls):
                self.wrappers.add(cls)
        return kind

    def _note_module(self, module: Module) -> None:
        if type(module) in self.wrappers:
            refuse_wrapper(module)
        self.modules.append(module)
        # A frozen TorchScript module has forgotten whether it is in training.
        training = getattr(module, "training", None)
        if training is not None:
            self.modes.append((module, training))
