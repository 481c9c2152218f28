"""A drawn step with its inputs: run as the plain loop, and as a chain."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from chainograd import CheckpointedChain, binomial, keep_last
from tests.drawing_steps.draw import Draw
from tests.drawing_steps.layers import KINDS, WORDS

PARAMETRIZED = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm": parametrizations.spectral_norm,
}


def like(y: Tensor, x: Tensor) -> Tensor:
    """Return y, repeated or cut sample by sample until it has the shape of x."""
    if y.shape == x.shape:
        return y
    flat, wanted = y.reshape(len(y), -1), x[0].numel()
    return flat.repeat(1, -(-wanted // flat.shape[1]))[:, :wanted].reshape(x.shape)


class Network(nn.Module):
    """The layers of a draw, one after the other, and one that is never called."""

    def __init__(self, drawn: Draw) -> None:
        super().__init__()
        self.names = list(drawn.layers)
        self.layers = nn.ModuleList([KINDS[name].make(drawn.shape) for name in self.names])
        self.unused = nn.Linear(2, 2)
        self.twice, self.island = drawn.twice, drawn.autocast == "island"
        for module in self.modules():
            if (
                isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
                and drawn.parametrized != "none"
            ):
                PARAMETRIZED[drawn.parametrized](module)
        self.to(drawn.dtype).train(drawn.train)
        if drawn.autocast.startswith("decorated"):
            self.forward = torch.autocast("cpu", drawn.amp)(self.forward)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return the next state."""
        for place, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            for _ in range(2 if self.twice and place == 0 else 1):
                x = x + 0.5 * torch.tanh(self._called(place, name, layer, x, ids))
        return x

    def _called(self, place: int, name: str, layer: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
        if self.island and place == 0:
            with torch.autocast("cpu", enabled=False):
                return like(KINDS[name].call(layer, x, ids), x)
        return like(KINDS[name].call(layer, x, ids), x)


class Halved(torch.autograd.Function):
    """Sine of half of x, with a matrix product in its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(0.5 * x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = 0.5 * torch.cos(0.5 * x)
        column = (gradients[0] * slope).reshape(len(x), -1)
        return (column @ torch.eye(column.shape[1], dtype=x.dtype)).reshape(x.shape).to(x.dtype)


class Problem:
    """Everything that one run needs, made anew from the seed."""

    def __init__(self, drawn: Draw) -> None:
        self.drawn = drawn
        torch.manual_seed(drawn.seed)
        self.net = Network(drawn)
        self.parameters = dict(self.net.named_parameters())
        for place, parameter in enumerate(self.parameters.values()):
            frozen = {"none": False, "some": place % 2 == 0, "all": True}[drawn.frozen_weights]
            parameter.requires_grad_(not frozen)
        for buffer in self.net.buffers():  # statistics of batches that are not 0 and 1
            if buffer.is_floating_point() and drawn.parametrized == "none":
                buffer.add_(torch.rand_like(buffer))
        x_wanted, c_wanted = drawn.wanted
        self.x = self._first_state().requires_grad_(x_wanted)
        self.c = torch.randn((), dtype=drawn.dtype).requires_grad_(c_wanted)
        self.direction = torch.randn(drawn.shape.full, dtype=drawn.dtype)
        self.ids = torch.randint(0, WORDS, (drawn.batch, 3))
        self.generator = torch.Generator().manual_seed(drawn.seed + 1)
        self.unseen = random.Random(drawn.seed)  # by the chain
        self.chained = False
        self.kept: dict[str, Tensor] = {}
        self.heard: list[tuple[str, Tensor | None]] = []
        self._listen()

    def _first_state(self) -> Tensor:
        x = torch.randn(self.drawn.shape.full, dtype=self.drawn.dtype)
        if self.drawn.memory == "expanded":
            return x[:1].clone().expand(self.drawn.shape.full)
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if self.drawn.memory == "channels_last" and x.dim() in formats:
            return x.to(memory_format=formats[x.dim()])
        return x

    def _listen(self) -> None:
        """Hang up the hooks that are drawn."""
        inputs = {"x": self.x, "c": self.c}
        for where in self.drawn.hooks:
            for name, tensor in (inputs if where == "inputs" else self.parameters).items():
                if not tensor.requires_grad or (
                    where != "inputs" and ("unused" in where) != name.startswith("unused")
                ):
                    continue
                if where.startswith("post"):
                    tensor.register_post_accumulate_grad_hook(partial(self._heard_after, name))
                else:
                    tensor.register_hook(partial(self._heard, name))

    def _heard(self, name: str, gradient: Tensor) -> Tensor:
        self.heard.append((name, gradient.clone()))
        return gradient * 0.5

    def _heard_after(self, name: str, tensor: Tensor) -> None:
        self.heard.append((f"{name} after", None if tensor.grad is None else tensor.grad.clone()))

    @property
    def first(self) -> Any:
        """The state that enters step 0."""
        if self.drawn.state == "history":
            return (self.x, torch.cos(self.x.detach()))
        if self.drawn.state == "rich":
            return {
                "x": self.x, "ids": self.ids, "count": 0, "name": "a name", "none": None,
                "sigma": torch.tensor(0.3, dtype=self.drawn.dtype),
                "mean": torch.zeros(self.drawn.batch, dtype=self.drawn.dtype),
            }  # fmt: skip
        return self.x

    def step(self, state: Any, i: int, c: Tensor) -> Any:
        """Return the next state."""
        with (
            torch.autocast("cpu", self.drawn.amp)
            if self.drawn.autocast == "inside"
            else nullcontext()
        ):
            match self.drawn.state:
                case "history":
                    x, before = state
                    y = self._moved(x + 0.1 * before, self.ids_of(x, i), i, c)
                    # Where several losses see one tensor the loop adds up in another order.
                    return y, x if self.drawn.losses is None else x.clone()
                case "rich":
                    x, mean = state["x"], state["mean"]
                    column = mean.view(-1, *[1] * (x.dim() - 1))
                    y = self._moved(x * (1 + state["sigma"]) - column, state["ids"], i, c)
                    mean = 0.9 * mean + 0.1 * x.detach().flatten(1).mean(1)
                    ids, count = (state["ids"] + 1) % WORDS, state["count"] + 1
                    return {**state, "x": y, "ids": ids, "count": count, "mean": mean}
            return self._moved(state, self.ids_of(state, i), i, c)

    def ids_of(self, x: Tensor, i: int) -> Tensor:
        """Return indices for a state that does not carry them."""
        return (torch.arange(3) + i).repeat(len(x), 1) % WORDS

    def _called(self, x: Tensor, ids: Tensor) -> Tensor:
        """Call the network as it is drawn."""
        match self.drawn.inside:
            case "guidance":
                with torch.enable_grad():
                    z = x.detach().requires_grad_()
                    (pull,) = torch.autograd.grad(self.net(z, ids).float().square().sum(), z)
                return self.net(x, ids) - 0.1 * pull
            case "checkpoint":
                return checkpoint(self.net, x, ids, use_reentrant=False)
            case "chain":
                if self.chained:
                    inner = CheckpointedChain(lambda x, j: self.net(x, ids), 2)
                    return inner(x.clone())
                return self.net(self.net(x.clone(), ids), ids)
            case "function":
                return Halved.apply(self.net(x, ids))
            case "cut":
                with torch.no_grad():
                    part = self.net(x, ids)
                return self.net(x, ids) + 0.1 * part
        return self.net(x, ids)

    def _moved(self, x: Tensor, ids: Tensor, i: int, c: Tensor) -> Tensor:
        y = x + 0.3 * (self._called(x, ids) - 0.5 * x) * (1 + c) + i / 8
        if self.drawn.noise != "none":
            generator = self.generator if self.drawn.noise == "named" else None
            y = y + 0.1 * y * torch.randn(y.shape, dtype=y.dtype, generator=generator)
        match self.drawn.fault:
            case "kept":
                if i == max(0, self.drawn.M - 2):
                    self.kept["e"] = torch.sin(c * 2)
                y = y * self.kept["e"] if self.kept else y
            case "permuted":
                order = self.unseen.sample(range(y[0].numel()), y[0].numel())
                y = y.flatten(1)[:, order].view(y.shape)
            case "in place":
                y = y.clone() if i == 0 else x.clone().add_(y) if i < 2 else x.add_(y)
        return y.to(self.drawn.dtype)

    def around(self, *, cached: bool) -> AbstractContextManager[Any]:
        """Return the autocast region that the forward pass is in."""
        if self.drawn.autocast in ("around", "around all", "island", "decorated around"):
            return torch.autocast("cpu", self.drawn.amp, cache_enabled=cached)
        return nullcontext()

    def loop(self) -> list[Any]:
        """Run the plain loop; return its states."""
        M, truncated = self.drawn.M, self.drawn.grad_steps
        passed = range(M) if truncated is None else truncated
        passed = range(M - passed, M) if isinstance(passed, int) else passed
        if self.drawn.losses is None:  # what is before the last gap cannot be reached
            passed = range(max((i + 1 for i in range(M) if i not in passed), default=0), M)
        states = [self.first]
        # A chain promises the gradient of casts that are made anew in every step.
        with self.around(cached=False):
            for i in range(M):
                torch.clear_autocast_cache()
                with torch.set_grad_enabled(i in passed):
                    state = self.step(states[-1], i, self.c)
                states.append(state if i in passed else pytree.tree_map(_detached, state))
        return states

    def chain(self, folder: Path) -> list[Any]:
        """Run the chain; return its states, of which those that no loss sees are None."""
        drawn, self.chained = self.drawn, True
        options: dict[str, Any] = {
            "frozen": drawn.frozen,
            "verify": drawn.verify,
            "store": str(folder) if drawn.store == "folder" else drawn.store,
            "generators": [] if drawn.fault == "unnamed generator" else [self.generator],
            "grad_steps": drawn.grad_steps,
            "micro_batch": drawn.micro_batch,
        }
        if drawn.transform:
            options["grad_transform"] = lambda i, g: g
        with undisturbed():
            other = Problem(drawn)
            other.chained = True
        with self.around(cached=True):
            plan = self._plan(other, options)
            chain = CheckpointedChain(self.step, drawn.M, plan=plan, **options)
            if drawn.losses is None:
                return [None] * drawn.M + [chain(self.first, self.c)]
            return chain.trajectory(self.first, self.c)

    def _plan(self, other: Problem, options: dict[str, Any]) -> Any:
        # Another problem is measured, for measuring moves the generators that no chain knows.
        M = self.drawn.M
        match self.drawn.plan:
            case "last":
                return keep_last(M, self.drawn.keep)
            case "binomial":
                return binomial(M, slots=self.drawn.keep)
            case "bytes":
                chain = CheckpointedChain(other.step, M, **options)
                costs = chain.measure(other.first, other.c)
                least = binomial(M, slots=1).with_costs(costs).peak_bytes
                whole = CheckpointedChain(self.step, M, plan="graph").plan
                most = whole.with_costs(costs).peak_bytes
                return max(1, least + int(self.drawn.budget * max(most - least, 0)))
        return self.drawn.plan

    def results(self, run: Callable[[], list[Any]]) -> dict[str, Any]:
        """Return what a run gives: values, gradients, and all that it leaves behind."""
        torch.manual_seed(7)
        states = run()
        seen = [states[i] for i in sorted(self.drawn.losses or {self.drawn.M})]
        leaves = pytree.tree_leaves(seen)
        found: dict[str, Any] = {
            "structure": [pytree.tree_structure(state) for state in seen],
            "states": [t.detach().clone() if isinstance(t, Tensor) else t for t in leaves],
            "requires_grad": [t.requires_grad for t in leaves if isinstance(t, Tensor)],
            "strides": [t.stride() for t in leaves if isinstance(t, Tensor)],
            "buffers after the forward pass": [b.clone() for b in self.net.buffers()],
            "streams after the forward pass": self._streams(),
        }
        losses = [self._loss(t) for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        if losses:
            with self.around(cached=True) if self.drawn.autocast == "around all" else nullcontext():
                found |= self._gradients(losses)
        found["hooks"] = sorted(name for name, _ in self.heard)
        for place, (name, gradient) in enumerate(sorted(self.heard, key=lambda heard: heard[0])):
            found[f"what hook {place} heard of {name}"] = gradient
        found["buffers"] = [b.clone() for b in self.net.buffers()]
        found["streams"] = self._streams()
        return found

    def _streams(self) -> list[Tensor]:
        return [torch.get_rng_state(), self.generator.get_state()]

    def _loss(self, leaf: Tensor) -> Tensor:
        return (leaf * self.direction).sum() if leaf.dim() > 1 else leaf.square().sum()

    def _gradients(self, losses: list[Tensor]) -> dict[str, Any]:
        inputs = {"x": self.x, "c": self.c, **self.parameters}
        wanted = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
        found: dict[str, Any] = {}
        for more in reversed(range(self.drawn.passes)):
            if self.drawn.by == "backward":
                sum(losses, torch.zeros(())).backward(retain_graph=more > 0)
                gradients = [None if t.grad is None else t.grad.clone() for t in wanted.values()]
            else:
                gradients = torch.autograd.grad(
                    sum(losses, torch.zeros(())),
                    list(wanted.values()),
                    retain_graph=more > 0,
                    allow_unused=True,
                )
            for name, gradient in zip(wanted, gradients, strict=True):
                found[f"gradient of {name}, {more} more"] = gradient
        return found


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave torch's streams as they are."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
