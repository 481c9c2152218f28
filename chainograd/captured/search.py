"""A walk through everything that a step can reach."""

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
from chainograd.captured.contents import contents
from chainograd.captured.generators import is_own
from chainograd.captured.names import holds_no_tensors, named_by, names_in
from chainograd.captured.traits import PLAIN, Traits, traits_of
from chainograd.captured.wrappers import (
    is_wrapper,
    pass_counter,
    refuse_partitioned,
    refuse_wrapper,
)
from chainograd.errors import ChainError
from chainograd.torch_internals.compiler import is_compiled, uses_cuda_graphs
from chainograd.torch_internals.torchscript import ScriptMethod

# Note [The search]
# 1. The search enters every module of torch it meets, and of other objects: containers (of a big
#    one, first a sample: note [Big containers]), closures, default arguments, attributes, slots,
#    weak references, and the members of classes that are not functions.
# 2. It enters a function that is a member of a class, and a member of a module of code, only if
#    code that it has reached names the member. It enters the globals that a function names, and the
#    members of modules that the function names. It enters no function of a numerical library.

_MANY = 4096  # in a container with more entries, tensors that require no gradient are not searched
_SCRIPTED = (torch.jit.ScriptFunction, ScriptMethod)
# Methods that Python calls although no code names them.
_CALLED = frozenset(("__call__", "forward", "__getattr__", "__getitem__", "__iter__", "__next__",
                     "__enter__", "__exit__"))  # fmt: skip
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property,
              functools.partialmethod)  # fmt: skip


class Search:
    """A walk through everything that a step can reach, and what it has found so far."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.generators: list[object] = []
        self.modules: list[Module] = []
        self.modes: list[tuple[Module, bool]] = []
        self.devices: set[torch.device] = set()
        self.scripted = self.compiled = self.cuda_graphs = False
        self.counts_passes: str | None = None
        # By ids. It holds the objects: an object that died would leave its id to another one.
        self.seen: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.big: list[Any] = []  # containers that were met and not entered yet
        self.frozen = 0  # how many tensors were met that require no gradient
        self.names: set[str] = set(_CALLED)
        self.spaces: dict[types.ModuleType | type, None] = {}
        self.traits: dict[type, Traits] = {}
        self.wrappers: set[type] = set()  # the classes among them for `refuse_wrapper`
        self.followed = (0, 0)

    def walk(self, things: Iterable[Any]) -> None:
        """Enter objects and everything they hold; leave big containers for later."""
        stack, seen, known = self.stack, self.seen, self.traits
        stack.extend(things)
        while stack:
            thing = stack.pop()
            cls = type(thing)
            if cls in PLAIN or id(thing) in seen:
                continue
            if cls is tuple and len(thing) < 8 and PLAIN.issuperset(map(type, thing)):
                continue  # a size; every convolution has four of these
            seen[id(thing)] = thing
            traits = known.get(cls) or self._note_class(cls)
            if traits.tensor:
                self._note_tensor(thing)
            elif cls in BARE and not is_big(thing):
                stack.extend(entries(thing, PLAIN))
            elif not self._note(thing, traits):
                stack.extend(contents(thing, traits))

    def _note(self, thing: Any, traits: Traits) -> bool:
        """Note what the chain must know of an object; return whether to leave its contents."""
        if traits.generator:
            if is_own(thing):
                self.generators.append(thing)
        elif traits.namespace:
            self._note_space(thing)
        elif traits.container and is_big(thing):
            self.big.append(thing)
        elif not traits.closed:
            if traits.module:
                self._note_module(thing)
            elif type(thing) is types.FunctionType:
                self._note_function(thing)
            return False
        return True

    def enter_big(self) -> None:
        """Walk the big containers that were met, as far as note [Big containers] says."""
        while self.big:
            container = self.big.pop()
            before = self._found(container)
            waiting, self.big = self.big, []
            self.walk(sample(container, PLAIN))
            self.enter_big()  # containers in the sample stand for the other ones like them
            self.big = waiting
            if self._found(container) != before:
                self.walk(contents(container))

    def _found(self, container: Any) -> tuple[int, ...]:
        return len(self.tensors), len(self.modules), self.frozen * (size(container) <= _MANY)

    def follow_names(self) -> bool:
        """Enter the members of classes and modules that code names; return if more may follow.

        The members name other members, and lead to other classes.
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
                "The step uses a lazy module, whose parameters have no shape before its first "
                "run. Run the module once under `torch.no_grad()` before the chain."
            )
        refuse_partitioned(tensor)
        self.devices.add(tensor.device)
        if tensor.requires_grad:
            self.tensors.append(tensor)
        else:
            self.frozen += 1

    def _note_space(self, space: types.ModuleType | type) -> None:
        if holds_no_tensors(space):
            return
        self.spaces[space] = None
        if isinstance(space, type):
            self.stack.extend(space.__mro__)
            self.stack.extend(
                value
                for name, value in vars(space).items()
                if not name.startswith("__") and not isinstance(value, _FUNCTIONS)
            )

    def _note_function(self, function: types.FunctionType) -> None:
        self.names |= names_in(function.__code__)
        if is_compiled(function):
            self.compiled = True
            self.cuda_graphs = self.cuda_graphs or uses_cuda_graphs(function)
        self.stack.extend(named_by(function))

    def _note_class(self, cls: type) -> Traits:
        traits = self.traits[cls] = traits_of(cls)
        if not traits.closed:
            self.stack.extend(cls.__mro__)
        self.scripted = self.scripted or traits.scripted or issubclass(cls, _SCRIPTED)
        if traits.module:
            self.counts_passes = self.counts_passes or pass_counter(cls)
            # A class of torch, whose members are not searched, may have a decorated `forward`.
            self.stack.append(getattr(cls, "forward", None))
            if is_wrapper(cls):
                self.wrappers.add(cls)
        return traits

    def _note_module(self, module: Module) -> None:
        if type(module) in self.wrappers:
            refuse_wrapper(module)
        self.modules.append(module)
        # A frozen TorchScript module does not know whether it is in training.
        training = getattr(module, "training", None)
        if training is not None:
            self.modes.append((module, training))
