"""The log of a run: times, bytes and norms, noted while it runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from chainograd.plans.levels import level_name
from chainograd.plans.plan import BlockCost, Level, Plan, StepCost
from chainograd.report.steps import Report, StepReport
from chainograd.state import Cotangents, State
from chainograd.tensors.devices import Moment, module_of, moment, seconds_between
from chainograd.tensors.parts import is_plain, tensor_bytes
from chainograd.torch_internals.modes import is_fake
from chainograd.torch_internals.transforms import is_batch_of_gradients, is_wrapped

SMALL = 1 << 10  # bytes up to which a cotangent may wait for its norm
TOGETHER = 64  # cotangents that wait until their norms are computed together

Phase = Literal["forward", "rerun", "backward"]


@dataclass(slots=True, eq=False)
class Log:
    """The log of a run. It holds no state and no graph.

    Attributes:
        device: The device on which the steps run.
        progress: Whether to show a progress bar for each of the two passes.
        times: For each run of a step: the phase, the step, the moments of its begin and end.
        node_bytes: The bytes of the states, by the steps that they enter.
        norms: The norms of the cotangents of each state.
        waiting: Small cotangents whose norms are not computed yet, with their steps.
        bar: The progress bar that is shown now.
        queued: Whether the device has a queue, so that operations return before they are done.
        now: Returns this moment, without waiting for the device.
    """

    device: torch.device
    progress: bool = False
    times: list[tuple[Phase, int, Moment, Moment]] = field(default_factory=list)
    node_bytes: dict[int, int] = field(default_factory=dict)
    norms: dict[int, list[float | Tensor | None]] = field(default_factory=dict)
    waiting: list[tuple[int, Tensor]] = field(default_factory=list)
    bar: Any = None
    queued: bool = field(init=False)
    now: Callable[[], Moment] = field(init=False)

    def __post_init__(self) -> None:
        self.queued = module_of(self.device) is not None
        self.now = partial(moment, self.device) if self.queued else time.perf_counter

    def ran(self, phase: Phase, i: int, began: Moment) -> None:
        """Note that step i, or its backward pass, ran from ``began`` until now."""
        self.times.append((phase, i, began, self.now()))
        if self.bar is not None and phase != "backward":
            self.bar.update()

    def saw(self, i: int, state: State) -> None:
        """Note the bytes of the state that enters step i."""
        self.node_bytes[i] = sum(map(tensor_bytes, state.tensors))

    def sent(self, i: int, cotangents: Cotangents) -> None:
        """Note the norms of the cotangents of the state that enters step i, without waiting."""
        self.norms[i] = []
        for g in cotangents.values():
            # One small norm takes as long as a small step's backward pass. Many norms together
            # take hardly longer than one.
            if is_plain(g) and g.nbytes <= SMALL and g.dtype.itemsize > 1:
                self.waiting.append((i, g))
                if len(self.waiting) == TOGETHER:
                    self.settle()
            else:
                norm = _norm_of(g)
                self.norms[i].append(norm if self.queued or norm is None else norm.item())

    def settle(self) -> None:
        """Compute the norms of the cotangents that wait, and drop the cotangents."""
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
        """Show a progress bar for a pass of ``total`` step evaluations, if progress is wanted."""
        if not self.progress:
            yield
            return
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=phase, unit="step") as self.bar:
            try:
                yield
            finally:
                self.bar = None

    def report(
        self, num_steps: int, costs: tuple[StepCost, ...] | None, plan: Plan | None = None
    ) -> Report:
        """Return the report; on an accelerator this waits for the device.

        Args:
            num_steps: M.
            costs: The cost of each step, if it was measured.
            plan: What the run did; by default nothing is said of levels.
        """
        levels = bytes(num_steps) if plan is None else plan.program.levels
        kept = [False] * num_steps if plan is None else plan.program.recorded_first.tolist()
        seconds: dict[tuple[Phase, int], float] = defaultdict(float)
        reruns: dict[int, int] = defaultdict(int)
        for phase, i, began, ended in self.times:
            seconds[phase, i] += seconds_between(began, ended)
            reruns[i] += phase == "rerun"

        def of_step(i: int) -> StepReport:
            return StepReport(
                index=i,
                forward_seconds=seconds["forward", i],
                rerun_seconds=seconds["rerun", i],
                reruns=reruns[i],
                backward_seconds=seconds["backward", i],
                node_bytes=self.node_bytes.get(i, 0),
                graph_bytes=graph_bytes(i),
                cotangent_norm=_norm(self.norms.get(i, [])),
                level=level_name(Level(levels[i]), kept=kept[i]),
            )

        def graph_bytes(i: int) -> int | None:
            level = Level(levels[i])
            if costs is None or level not in costs[i].levels:
                return None if costs is None else costs[i].graph_bytes
            return costs[i].graph(level, kept=kept[i]).graph_bytes

        return Report(tuple(map(of_step, range(num_steps))), _blocks(levels, costs))


def _blocks(levels: bytes, costs: tuple[StepCost, ...] | None) -> tuple[BlockCost, ...]:
    """Return the blocks of the first step that is cut, if they were measured."""
    cut = (cost.blocks for cost, code in zip(costs or (), levels, strict=False) if code & 1)
    return next(filter(None, cut), ())


def has_numbers(g: Tensor) -> bool:
    """Return whether a cotangent has values: it is neither a batch of gradients nor a fake."""
    return not (is_batch_of_gradients(g) or is_wrapped(g) or is_fake(g))


def _norm_of(g: Tensor) -> Tensor | None:
    """Return a cotangent's norm; None if torch has no norm for its kind.

    Whatever error torch raises for that kind is caught: a report must not stop a gradient.
    """
    try:
        if g.layout is torch.sparse_coo:
            g = g.coalesce()  # entries at the same place are added before they are squared
        return torch.linalg.vector_norm(g if g.layout is torch.strided else g.values())
    except (RuntimeError, TypeError):
        return None


def _norm(parts: list[float | Tensor | None]) -> float | None:
    """Return the norm of a state from the norms of its tensors; None if one is unknown."""
    found = [float(part) for part in parts if part is not None]
    if not parts or len(found) < len(parts):
        return None
    return sum(part**2 for part in found) ** 0.5
