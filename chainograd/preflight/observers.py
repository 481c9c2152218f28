"""Watches the operations of a step: what cuts gradients off, what is changed, what is drawn."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from chainograd.preflight.sites import Site, module_name, site
from chainograd.replay.buffers import put_back
from chainograd.state import differentiable
from chainograd.torch_internals import pytree
from chainograd.torch_internals.autograd import SET_GRAD_ENABLED
from chainograd.torch_internals.tensors import storage_id


class Call(NamedTuple):
    """A call of an operation, with the tensors that it is given."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: list[Tensor]

    @property
    def name(self) -> str:
        """The operation's name; that of a property is `__get__`."""
        return getattr(self.func, "__name__", "")

    def changed(self) -> list[Tensor]:
        """Return the tensors that the operation changes in place, as far as its name says."""
        name, targets = self.name, [self.kwargs.get("out")]
        named = name.endswith("_") and not name.endswith("__") and name not in _OF_NO_VALUES
        inplace = named or name in _AUGMENTED or self.kwargs.get("inplace") is True
        if inplace:
            targets.append(self.args[:1])
        return _tensors(targets)


_OF_NO_VALUES = {"requires_grad_", "detach_", "share_memory_", "rename_"}
_AUGMENTED = {"__setitem__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}


class Observer(Protocol):
    """What a `Observing` shows each operation to, before it runs and afterwards."""

    def before(self, call: Call) -> None:
        """See an operation that is about to run."""

    def after(self, call: Call, out: list[Tensor]) -> None:
        """See an operation that has run, and the tensors it gave."""


class Observing(TorchFunctionMode):
    """Shows every operation to observers."""

    def __init__(self, *observers: Observer) -> None:
        super().__init__()
        self.observers = observers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {}, _tensors((args, kwargs)))
        for observer in self.observers:
            observer.before(call)
        result = func(*args, **call.kwargs)
        out = _tensors(result)
        for observer in self.observers:
            observer.after(call, out)
        return result


class Detach(NamedTuple):
    """How and where a tensor was cut off from the graph of what it was made of."""

    kind: Literal["gradients off", "detached"]
    site: Site


def _any(_: Tensor) -> bool:
    return True


class DetachTracker:
    """Follows tensors that were cut off from a gradient, through all that is made of them.

    Args:
        counts: Whether the gradient of a tensor that requires one is wanted.

    Attributes:
        last: The last cut there was, whatever became of it.
        number: Where a line of the user's took a number out of a tensor with a gradient.
        left: The cut of a tensor that became an array, of which torch sees no more.
    """

    def __init__(self, counts: Callable[[Tensor], bool] = _any) -> None:
        self.counts = counts
        self.last: Detach | None = None
        self.number: Site | None = None
        self.left: Detach | None = None
        self._turned_off: Site | None = None
        self._cuts: dict[int, tuple[weakref.ref[Tensor], bool, Detach]] = {}

    def of(self, tensor: Tensor) -> Detach | None:
        """Return the cut that a tensor has behind it, if any."""
        reference, had_graph, cut = self._cuts.get(id(tensor), (None, False, None))
        if reference is None or reference() is not tensor:
            return None
        # A custom autograd function works with gradients off and gives its outcome a graph later.
        return cut if had_graph or tensor.grad_fn is None else None

    def _wanted(self, given: list[Tensor]) -> bool:
        return any(tensor.requires_grad and self.counts(tensor) for tensor in given)

    def before(self, call: Call) -> None:
        """Note where gradients are turned off and what leaves torch as numbers."""
        if call.name == SET_GRAD_ENABLED:
            if call.args[0]:
                self._turned_off = None
            elif torch.is_grad_enabled():
                self._turned_off = site()
        elif call.name in _TO_NUMBERS and self._wanted(call.given):
            self.last = Detach("detached", site())
            if self.last.site.direct:
                self.number = self.number or self.last.site
        elif call.name in _TO_ARRAYS:
            self.left = next(filter(None, map(self.of, call.given)), self.left)

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Mark what an operation gave, if it cuts off or was given what was cut off."""
        made = [*filter(differentiable, out), *call.changed()]
        if not made or call.name.startswith(_OF_SHAPES):
            return
        cut = next((cut for cut in map(self.of, call.given) if cut is not None), None)
        if self._wanted(call.given):
            if _detaches(call):
                cut = self.last = Detach("detached", site())
            elif not torch.is_grad_enabled():
                cut = self.last = Detach("gradients off", self._turned_off or site())
        if cut is not None:
            for tensor in made:
                if tensor.grad_fn is not None or not tensor.requires_grad:  # no parameter
                    self._cuts[id(tensor)] = (weakref.ref(tensor), tensor.grad_fn is not None, cut)


_TO_ARRAYS = {"tolist", "numpy", "__array__"}
_TO_NUMBERS = {"item", "tolist", "numpy", "__float__", "__int__", "__array__"}
# Their values do not depend on those of the tensors they are given.
_OF_SHAPES = ("zeros", "ones", "empty", "full", "rand", "new_", "bernoulli", "multinomial")


def _detaches(call: Call) -> bool:
    if call.name == "__get__":
        return call.func == Tensor.data.__get__  # type: ignore[attr-defined]
    if call.func is torch.autograd.grad:
        return not call.kwargs.get("create_graph")
    return call.name in ("detach", "detach_")


class MutationTracker:
    """Sees what is changed in place and was there before, and has it put back in the end.

    Args:
        entering: Tensors of the state that enters the step.
        free: Tensors that may be changed: statistics of batches.
        undo: Closed when all is over.

    Attributes:
        entering: Where the state was changed.
        found: By storage, where a tensor from outside the step was changed. A tensor made out of
            torch's sight is among them too; only of a change in two runs it is sure.
    """

    def __init__(self, entering: list[Tensor], free: list[Tensor], undo: ExitStack) -> None:
        self.entering: Site | None = None
        self.found: dict[int, tuple[Site, torch.Size]] = {}
        self._undo = undo
        self._state = set(_storages(entering))
        self._made = set(_storages(free))

    def before(self, call: Call) -> None:
        """Note what will be changed and was not made in this step, with its value."""
        for tensor in call.changed():
            (storage,) = _storages([tensor])
            if storage in self._made or storage in self.found:
                continue
            if storage in self._state:
                self.entering = self.entering or site()
            else:
                self.found[storage] = site(), tensor.shape
            self._keep(tensor.detach())

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Note what was made: whatever is no view of what was given."""
        self._made |= set(_storages(out)) - set(_storages(call.given))

    def _keep(self, tensor: Tensor) -> None:
        if tensor.layout is torch.strided:
            size = tensor.untyped_storage().nbytes()
            self._undo.callback(_put_back, tensor, tensor.clone(), size)


class RNGTracker:
    """Sees random numbers being drawn, and layers that behave as in training.

    Args:
        rng: Torch's global streams.
        listed: Generators that the chain knows.
        undo: Closed when all is over; puts generators back that the chain does not know.

    Attributes:
        noise: Where the first number was drawn from a global stream, dropout aside.
        dropout: Names of the modules that drop out, and where.
        batch_norm: Names of the modules that normalise by the batch, and where.
        generators: Generators that the chain does not know, their states before the first draw,
            and where.
    """

    def __init__(self, rng: list[Generator], listed: Iterable[Generator], undo: ExitStack) -> None:
        self.noise: Site | None = None
        self.dropout: dict[str, Site] = {}
        self.batch_norm: dict[str, Site] = {}
        self.generators: list[tuple[Generator, Tensor, Site]] = []
        self._known = {id(generator) for generator in (*rng, *listed)}
        self._undo = undo
        self._streams = [(generator, generator.initial_seed()) for generator in rng]
        self._states: list[Tensor] = []

    def before(self, call: Call) -> None:
        """Note a generator that the chain does not know, and batch statistics."""
        self._states = [generator.get_state() for generator, _ in self._streams]
        for value in call.kwargs.values():
            if isinstance(value, Generator) and id(value) not in self._known:
                self._known.add(id(value))
                state = value.get_state()
                self.generators.append((value, state, site()))
                self._undo.callback(value.set_state, state)
        if call.func is F.batch_norm and call.kwargs.get("training"):
            self.batch_norm.setdefault(module_name(), site())

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Note whether the operation drew from a global stream."""
        drawn_from = [
            (generator, seed)
            for (generator, seed), state in zip(self._streams, self._states, strict=True)
            if not torch.equal(generator.get_state(), state)
        ]
        if not drawn_from:
            return
        if "dropout" in call.name or call.name in _WITH_DROPOUT:
            self.dropout.setdefault(module_name(), site())
        elif all(generator.initial_seed() == seed for generator, seed in drawn_from):
            self.noise = self.noise or site()  # else the step has seeded the stream itself


_WITH_DROPOUT = {"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
                 "rnn_tanh", "rnn_relu"}  # fmt: skip


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _put_back(tensor: Tensor, value: Tensor, size: int) -> None:
    # FSDP frees memory under tensors that live on.
    if tensor.untyped_storage().nbytes() == size:
        put_back([tensor], [value])


def _storages(tensors: list[Tensor]) -> Iterator[int]:
    """Yield a number for each tensor: equal for those that share memory."""
    for tensor in tensors:
        try:
            yield storage_id(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # sparse, or no tensor with memory of its own
            yield id(tensor)
