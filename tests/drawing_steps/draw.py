"""A draw: a step, its inputs, and the options of its chain."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tests.drawing_steps.layers import KINDS, Shape

STATES = ("tensor", "history", "rich")
AUTOCASTS = ("none", "around", "around all", "inside", "island", "decorated", "decorated around")
INSIDE = ("guidance", "checkpoint", "chain", "function", "cut")
HOOKS = ("used", "unused", "post", "post unused", "inputs")
PARAMETRIZATIONS = ("orthogonal", "weight norm", "spectral norm")
PLANS = ("nodes", "graph", "last", "binomial", "bytes")
FAULTS = ("kept", "unnamed generator", "permuted", "in place")
DRAWING = ("Dropout", "RReLU", "Fractional")  # of layers that draw, some in evaluation too


@dataclass(frozen=True)
class Draw:
    """One draw. The defaults are the plainest there is.

    Attributes:
        seed: Of weights, inputs and noise, and of the draw itself.
        layers: Names of `KINDS`, in their order.
        twice: Whether the first layer is called twice a step.
        parametrized: A parametrization of the weights of linear and convolutional layers.
        train: Whether the network is in training.
        memory: "contiguous", "channels_last" or "expanded" (strides of 0 in the first state).
        state: One of `STATES`.
        noise: "none", "global" or "named".
        inside: What the step does with its network: "plain" or one of `INSIDE`.
        autocast: One of `AUTOCASTS`; ``amp`` is its dtype.
        frozen_weights: "none", "some" or "all".
        wanted: Whether the first state and the argument require a gradient.
        hooks: Some of `HOOKS`: where hooks are.
        losses: States that the loss sees; None is the last one, from a call.
        by: "backward" or "grad".
        passes: How many backward passes the graph is used for.
        keep, budget: Of plans: graphs or slots, and the part of all bytes.
        grad_steps: None, K, or a set of steps.
        transform: Whether there is a `grad_transform` that changes nothing.
        fault: Something that a step must not do; then a chain may refuse.
    """

    seed: int
    layers: tuple[str, ...] = ("Tanh",)
    layout: str = "v"
    batch: int = 2
    channels: int = 4
    sides: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    twice: bool = False
    parametrized: str = "none"
    train: bool = False
    memory: str = "contiguous"
    state: str = "tensor"
    inside: str = "plain"
    noise: str = "none"
    autocast: str = "none"
    amp: torch.dtype = torch.bfloat16
    frozen_weights: str = "none"
    wanted: tuple[bool, bool] = (True, True)
    hooks: frozenset[str] = frozenset()
    losses: frozenset[int] | None = None
    by: str = "backward"
    passes: int = 1
    M: int = 3
    plan: str = "nodes"
    keep: int = 1
    budget: float = 0.5
    store: str = "device"
    frozen: str = "off"
    verify: str = "exact"
    grad_steps: int | frozenset[int] | None = None
    transform: bool = False
    micro_batch: int | None = None
    fault: str | None = None

    @property
    def shape(self) -> Shape:
        """The shape of the state."""
        return Shape(self.layout, self.batch, self.channels, self.sides)

    @property
    def exact(self) -> bool:
        """Whether a chain promises the bits of the plain loop."""
        # What is summed up slice by slice, or inside a step by a chain of its own, is rounded
        # in another order.
        return self.micro_batch is None and self.inside != "chain"

    @property
    def may_be_refused(self) -> bool:
        """Whether a refusal is as good as the loop's gradient."""
        # In training, spectral norm takes a step of its power iteration in every call.
        spectral = self.train and self.parametrized == "spectral norm"
        return self.fault is not None or spectral

    def plainer(self) -> list[Draw]:
        """Return draws that are plainer in one thing."""
        plain = Draw(self.seed)
        if len(self.layers) > 1:
            fewer = [self.layers[:at] + self.layers[at + 1 :] for at in range(len(self.layers))]
        else:
            fewer = [("Identity",)] if self.layers != ("Identity",) else []
        ways = [replace(self, layers=layers) for layers in fewer]
        given = {"seed", "layers", "layout", "sides", "fault"}
        for field in fields(self):
            value, default = getattr(self, field.name), getattr(plain, field.name)
            if field.name == "hooks":
                ways += [replace(self, hooks=value - {hook}) for hook in sorted(value)]
            elif field.name == "M":
                ways += [replace(self, M=value - 1)] if value > 1 else []
            elif field.name not in given and value != default:
                ways.append(replace(self, **{field.name: default}))
        return [way for way in ways if way.possible]

    @property
    def possible(self) -> bool:
        """Whether the layers take the shape, and the steps are there."""
        steps = [self.keep, *(self.losses or ())]
        if isinstance(self.grad_steps, frozenset):
            steps += [i + 1 for i in self.grad_steps]
        orthogonal = self.parametrized == "orthogonal" and self.dtype == torch.bfloat16
        return (
            max(steps) <= self.M
            and not orthogonal  # torch has no such kernel
            and all(KINDS[name].takes(self.shape, self.dtype) for name in self.layers)
        )

    def __str__(self) -> str:
        plain = Draw(self.seed)
        named = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in fields(self)
            if f.name in ("seed", "layers", "M") or getattr(self, f.name) != getattr(plain, f.name)
        ]
        return f"Draw({', '.join(named)})"


def _text(value: Any) -> str:
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(map(repr, sorted(value)))}}})"
    return str(value) if isinstance(value, torch.dtype) else repr(value)


def draw(seed: int, first: str | None = None) -> Draw:
    """Return the draw of a seed, with a given first layer if that is wanted."""
    rng = random.Random(f"{seed} {first}" if first else seed)
    rare = lambda part=0.25: rng.random() < part  # noqa: E731
    layout = rng.choice(KINDS[first].layouts if first else "vtt122233")
    while True:
        count = {"v": 0, "t": 1}.get(layout) or int(layout) if layout != "v" else 0
        shape = Shape(
            layout,
            rng.choice((1, 2, 2, 3, 4)),
            rng.choice((1, 4, 4, 4)),
            tuple(
                rng.choice((1, 2, 4, 4, 4, 4) if layout == "3" else (1, 2, 4, 4, 4, 6))
                for _ in range(count)
            ),
        )
        dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
        if first is None or KINDS[first].takes(shape, dtype):
            break
    fitting = [name for name, kind in KINDS.items() if kind.takes(shape, dtype)]
    layers = tuple(rng.choice(fitting) for _ in range(rng.randint(1, 3)))
    if first is not None:
        layers = (first, *layers[1:])
    M = rng.randint(1, 5)
    named = rare(0.15)
    trajectory = rare(0.3)
    known = PARAMETRIZATIONS[dtype == torch.bfloat16 :]  # the first has no such kernel
    # torch has no operations on both halves at once, and no LSTM in the other one.
    halves = dtype == torch.bfloat16 or any("LSTM" in name for name in layers)
    low = torch.bfloat16 if halves else torch.float16
    some = frozenset(i for i in range(1, M + 1) if rng.random() < 0.5)
    gaps = frozenset(i for i in range(M) if rng.random() < 0.6) | {M - 1}
    drawn = Draw(
        seed=seed,
        layers=layers,
        layout=layout,
        batch=shape.batch,
        channels=shape.channels,
        sides=shape.sides,
        dtype=dtype,
        twice=rare(),
        parametrized=rng.choice(known) if rare(0.1) else "none",
        train=rare(0.5),
        memory=rng.choice(("contiguous", "channels_last", "channels_last", "expanded")),
        state=rng.choice(STATES),
        inside=rng.choice(INSIDE) if rare(0.2) else "plain",
        noise="named" if named else rng.choice(("none", "none", "global")),
        autocast=rng.choice(AUTOCASTS) if rare(0.4) else "none",
        amp=rng.choice((torch.bfloat16, torch.bfloat16, low)),
        frozen_weights=rng.choice(("none", "none", "some", "all")),
        wanted=rng.choice(((True, True), (True, False), (False, True), (False, False))),
        hooks=frozenset(hook for hook in HOOKS if rare()) if rare(0.4) else frozenset(),
        losses=some | {M} if trajectory else None,
        by=rng.choice(("backward", "backward", "grad")),
        passes=2 if rare(0.1) else 1,
        M=M,
        plan=rng.choice(PLANS),
        keep=rng.randint(1, M),
        budget=rng.random(),
        store=rng.choice(("device", "device", "host", "folder")),
        frozen=rng.choice(("off", "auto")),
        verify=rng.choice(("exact", "exact", "exact", "close", "off")),
        grad_steps=rng.choice((rng.randint(1, M), gaps)) if rare(0.2) else None,
        transform=rare(0.15),
    )  # fmt: skip
    if drawn.inside == "chain":
        # In few bits another order shows too much to be compared.
        drawn = replace(drawn, dtype=torch.float64, autocast="none")
    if rare(0.08):
        return replace(drawn, fault=rng.choice(FAULTS), noise="named", verify="exact")
    if rare(0.1):
        return sliced(drawn, rng)
    return drawn


def sliced(drawn: Draw, rng: random.Random) -> Draw:
    """Return a draw whose chain runs in slices of the batch, without noise: equal to rounding."""
    layers = [name for name in drawn.layers if not any(word in name for word in DRAWING)]
    return replace(
        drawn,
        layers=tuple(name for name in layers if KINDS[name].takes(drawn.shape, torch.float64))
        or ("Identity",),
        dtype=torch.float64,
        train=False,
        autocast="none",
        noise="none",
        plan=rng.choice(("nodes", "binomial")),
        verify="exact",
        micro_batch=rng.randint(1, drawn.batch),
    )
