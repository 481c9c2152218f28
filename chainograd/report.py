"""What a run took, step by step: noted as it goes, read afterwards."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import (  # pyright: ignore[reportMissingImports]
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)
from torch._subclasses.fake_tensor import FakeTensor

from chainograd.plans.plan import StepCost
from chainograd.state import Cotangents, State
from chainograd.tensors.devices import Moment, module_of, moment, seconds_between
from chainograd.tensors.parts import is_plain, tensor_bytes

SMALL = 1 << 10  # bytes of a cotangent that may wait for its norm
TOGETHER = 64  # cotangents that wait

Phase = Literal["forward", "rerun", "backward"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step took in the last run.

    Attributes:
        index: The step.
        forward_seconds: Its first run.
        rerun_seconds: Its reruns, together. (Of slices they are part of ``backward_seconds``.)
        reruns: How many there were.
        backward_seconds: The cotangent's way through its graph.
        node_bytes: The state that enters it.
        graph_bytes: Its graph, if `CheckpointedChain.measure` or a byte budget has measured it.
        cotangent_norm: Euclidean norm of the cotangent of the state that enters it; None if the
            gradient did not come that far, or torch has no norm for a tensor of its kind.
    """

    index: int
    forward_seconds: float
    rerun_seconds: float
    reruns: int
    backward_seconds: float
    node_bytes: int
    graph_bytes: int | None
    cotangent_norm: float | None


class Report(NamedTuple):
    """What each step took in the last run of a chain; printed, it is a table."""

    steps: tuple[StepReport, ...]

    @property
    def evaluations(self) -> int:
        """Step evaluations, the first runs and the reruns."""
        return len(self.steps) + sum(step.reruns for step in self.steps)

    def __str__(self) -> str:
        """Return a table with a row a step."""
        head = ("step", "forward", "reruns", "rerun", "backward", "node", "graph", "|cotangent|")
        rows = [head, *(_row(step) for step in self.steps)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _row(step: StepReport) -> tuple[str, ...]:
    graph, norm = step.graph_bytes, step.cotangent_norm
    return (
        f"{step.index}",
        f"{step.forward_seconds * 1e3:.2f} ms",
        f"{step.reruns}",
        f"{step.rerun_seconds * 1e3:.2f} ms",
        f"{step.backward_seconds * 1e3:.2f} ms",
        f"{step.node_bytes / 2**10:.1f} KiB",
        "-" if graph is None else f"{graph / 2**10:.1f} KiB",
        "-" if norm is None else f"{norm:.3g}",
    )


@dataclass(slots=True, eq=False)
class Log:
    """What a run notes as it goes. Nothing in it holds a state or a graph.

    Attributes:
        device: Where the steps run.
        progress: Whether to show a bar for each of the two passes.
    """

    device: torch.device
    progress: bool = False
    times: list[tuple[Phase, int, Moment, Moment]] = field(default_factory=list)
    node_bytes: dict[int, int] = field(default_factory=dict)
    norms: dict[int, list[float | Tensor | None]] = field(default_factory=dict)
    waiting: list[tuple[int, Tensor]] = field(default_factory=list)  # small ones without a norm
    bar: Any = None
    queued: bool = field(init=False)  # whether what is started runs later, by itself
    now: Callable[[], Moment] = field(init=False)  # this moment, without waiting for the device

    def __post_init__(self) -> None:
        self.queued = module_of(self.device) is not None
        self.now = partial(moment, self.device) if self.queued else time.perf_counter

    def ran(self, phase: Phase, i: int, began: Moment) -> None:
        """Note that step i ran, or its backward pass, from ``began`` until now."""
        self.times.append((phase, i, began, self.now()))
        if self.bar is not None and phase != "backward":
            self.bar.update()

    def saw(self, i: int, state: State) -> None:
        """Note the state that enters step i."""
        self.node_bytes[i] = sum(map(tensor_bytes, state.tensors))

    def sent(self, i: int, cotangents: Cotangents) -> None:
        """Note the cotangents of the state that enters step i, without waiting for them."""
        self.norms[i] = []
        for g in cotangents.values():
            # A small norm takes as long as a small step's backward pass; together they do not.
            if is_plain(g) and g.nbytes <= SMALL and g.dtype.itemsize > 1:
                self.waiting.append((i, g))
                if len(self.waiting) == TOGETHER:
                    self.settle()
            else:
                norm = _norm_of(g)
                self.norms[i].append(norm if self.queued or norm is None else norm.item())

    def settle(self) -> None:
        """Take the norms of the cotangents that wait, and let these go."""
        alike: dict[Any, list[tuple[int, Tensor]]] = defaultdict(list)
        for i, g in self.waiting:
            alike[g.shape, g.device].append((i, g))
        self.waiting = []
        for some in alike.values():
            rows = torch.stack([g for _, g in some]).reshape(len(some), some[0][1].numel())
            norms = torch.linalg.vector_norm(rows, dim=1)
            each = norms.unbind() if self.queued else norms.tolist()
            for (i, _), norm in zip(some, each, strict=True):
                self.norms[i].append(norm)

    @contextmanager
    def showing(self, phase: str, total: int) -> Iterator[None]:
        """Show a bar for a pass of so many step evaluations, if one is wanted."""
        if not self.progress:
            yield
            return
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=phase, unit="step") as self.bar:
            try:
                yield
            finally:
                self.bar = None

    def report(self, num_steps: int, costs: tuple[StepCost, ...] | None) -> Report:
        """Return what was noted; on an accelerator this waits for it."""
        seconds: dict[tuple[Phase, int], float] = defaultdict(float)
        reruns: dict[int, int] = defaultdict(int)
        for phase, i, began, ended in self.times:
            seconds[phase, i] += seconds_between(began, ended)
            reruns[i] += phase == "rerun"
        return Report(
            tuple(
                StepReport(
                    index=i,
                    forward_seconds=seconds["forward", i],
                    rerun_seconds=seconds["rerun", i],
                    reruns=reruns[i],
                    backward_seconds=seconds["backward", i],
                    node_bytes=self.node_bytes.get(i, 0),
                    graph_bytes=None if costs is None else costs[i].graph_bytes,
                    cotangent_norm=_norm(self.norms.get(i, [])),
                )
                for i in range(num_steps)
            )
        )


def has_numbers(g: Tensor) -> bool:
    """Return whether a cotangent has a norm: it is no batch of gradients, and no fake."""
    wrapped = is_legacy_batchedtensor(g) or is_functorch_wrapped_tensor(g)
    return not (wrapped or isinstance(g, FakeTensor))


def _norm_of(g: Tensor) -> Tensor | None:
    """Return a cotangent's norm, or None if torch has none for its kind.

    A report must not stop a gradient, so whatever torch says of the kind is taken for an answer.
    """
    try:
        if g.layout is torch.sparse_coo:
            g = g.coalesce()  # what lies at one place is added before it is squared
        return torch.linalg.vector_norm(g if g.layout is torch.strided else g.values())
    except (RuntimeError, TypeError):
        return None


def _norm(parts: list[float | Tensor | None]) -> float | None:
    found = [float(part) for part in parts if part is not None]
    if not parts or len(found) < len(parts):
        return None
    return sum(part**2 for part in found) ** 0.5
