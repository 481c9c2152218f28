"""Tensors that a step uses without being handed them: found beforehand, or refused afterwards."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from chainograd.containers import is_big, sample, size
from chainograd.errors import ChainError
from chainograd.parts import PLAIN, Kind, holds_nothing, kind_of, named_by, names_in, parts
from chainograd.sharded import sharded_modules, with_shards
from chainograd.sums import Use
from chainograd.wrappers import (
    is_compiled,
    is_wrapper,
    pass_counter,
    refuse_partitioned,
    refuse_wrapper,
)

# Note [Captured tensors]
# 1. A gradient reaches a tensor only if the chain's autograd function has it as an input. What a
#    step captures is therefore searched for before the first run (`find_captured`).
# 2. Modules are searched whole. Of other things: containers (of big ones first a sample, note
#    [Big containers]), closures, default arguments, attributes, slots, what weak references lead
#    to, and all that classes hold which is no function.
# 3. Of modules' and classes' functions only those that some code which was reached names, and of
#    functions the globals that they name. Functions of numerical libraries name nothing.
# 4. A search can miss something (a tensor in a C extension, in an iterator, behind a computed
#    name). So the graph of every recorded step is searched for leaves that are not inputs
#    (`leaves_used`), and where no step will ever be recorded, the first run is watched
#    (`Witness`).

AccumulateGrad: type = torch._C._functions.AccumulateGrad  # pyright: ignore
_MANY = 4096  # in more entries than that, tensors that require no gradient are not looked for
_CALLED = frozenset(("__call__", "forward", "__getattr__", "__getitem__", "__iter__", "__next__",
                     "__enter__", "__exit__"))  # fmt: skip  # without being named
_FUNCTIONS = (types.FunctionType, staticmethod, classmethod, property)


class Captured(NamedTuple):
    """What a step can reach that the chain must know of.

    Attributes:
        tensors: Those that require a gradient.
        buffers: Those of modules in training.
        sharded: Modules that FSDP2 shards.
        modes: All modules, and whether each is in training.
        devices: Where tensors are, those that require no gradient too.
        compiled: Whether torch.compile made any of it, or compiles its calls.
        counts_passes: The class of a module whose hooks count forward passes per backward pass.
    """

    tensors: list[Tensor]
    buffers: list[Tensor]
    sharded: list[Any]
    modes: list[tuple[Module, bool]]
    devices: set[torch.device]
    compiled: bool
    counts_passes: str | None


def find_captured(step: object, others: Iterable[object] = ()) -> Captured:
    """Return what ``step``, and others that it is handed, can reach and the chain must know of.

    Each thing once. Note [Captured tensors] says what is followed. Costs some milliseconds for a
    network of hundreds of modules.

    Raises:
        ChainError: If something is found that would make the gradients wrong.
    """
    search = _Search()
    search.walk([step, *others])
    while search.big or search.follow_names():
        search.enter_big()
    sharded = sharded_modules(search.modules)
    return Captured(
        tensors=with_shards(search.tensors, sharded),
        buffers=[
            buffer
            for module, training in search.modes
            if training
            for buffer in module._buffers.values()
            if buffer is not None
        ],
        sharded=sharded,
        modes=search.modes,
        devices=search.devices,
        compiled=search.compiled,
        counts_passes=search.counts_passes,
    )


class _Search:
    """A walk through all that a step can reach, and what was found on it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.modules: list[Module] = []
        self.modes: list[tuple[Module, bool]] = []
        self.devices: set[torch.device] = set()
        self.compiled = False
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
            seen[id(thing)] = thing
            kind = kinds.get(cls) or self._new_kind(cls)
            if kind.tensor:
                self._note_tensor(thing)
            elif kind.space:
                self._note_space(thing)
            elif kind.container and is_big(thing):
                self.big.append(thing)
            elif not kind.atom:
                if kind.module:
                    self._note_module(thing)
                elif cls is types.FunctionType:
                    self.names |= names_in(thing.__code__)
                    self.compiled = self.compiled or is_compiled(thing)
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
            table = vars(space)
            self.walk([table[name] for name in self.names & table.keys()])
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
        self.compiled = self.compiled or is_compiled(module)
        # A frozen TorchScript module has forgotten whether it is in training.
        training = getattr(module, "training", None)
        if training is not None:
            self.modes.append((module, training))


def leaves_used(outputs: Iterable[Any]) -> list[Use]:
    """Return every use of a leaf in the graph of the tensors among ``outputs``.

    One that is itself a leaf requiring a gradient is among them.
    """
    uses: list[Use] = []
    stack: list[Any] = []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            if output.grad_fn is None:
                uses.append((output, None, 0))
            else:
                stack.append(output.grad_fn)
    seen = set(stack)
    while stack:
        node = stack.pop()
        for place, (parent, _) in enumerate(node.next_functions):
            if type(parent) is AccumulateGrad:
                uses.append((parent.variable, node, place))
            elif parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return uses


class Witness(TorchFunctionMode):
    """Calls ``report`` with every tensor requiring a gradient that an operation is given."""

    def __init__(self, report: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.report = report
        self.own: dict[int, Tensor] = {}  # made to require one by the step itself

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for value in given:
            if value.requires_grad and id(value) not in self.own:
                self.report(value)
        result = func(*args, **(kwargs or {}))
        for value in (*given, *pytree.tree_leaves(result)):
            if isinstance(value, Tensor) and value.requires_grad:
                self.own[id(value)] = value
        return result
