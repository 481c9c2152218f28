"""The fastest plan whose steps may be at different levels."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.choose_levels import with_levels
from chainograd.plans.costs import PriceList
from chainograd.plans.holding import holding, peak, seconds
from chainograd.plans.levels import Level
from chainograd.plans.plan import Plan
from chainograd.plans.planners import keep_last
from chainograd.plans.program import Program

# Note [The search over levels]
# 1. Graphs of the last steps are freed first. So a plan keeps whole graphs of the last a steps, and
#    graphs that are cut into blocks of the b steps before. All others run again, each at the
#    fastest level that fits: note [Levels of reruns].
# 2. Every a and b are candidates (of a long chain, about 32 each, the same for every budget). A
#    candidate's time is bounded from below without pricing its program, and so are its bytes.
#    Candidates are tried from fast to slow until none left can be faster.
# 3. A larger budget leaves every candidate that fits, at the same levels or faster ones. So it
#    never makes the plan slower.

MANY = 64  # steps up to which every number of kept graphs is tried
SOME = 32  # numbers that are tried of a longer chain


class Limits(NamedTuple):
    """The most bytes on the device, and in the store (None if that is not limited)."""

    device: int
    stored: int | None = None

    def allow(self, device: int, stored: int) -> bool:
        """Return whether so many bytes are within the limits."""
        return device <= self.device and (self.stored is None or stored <= self.stored)

    def hold(self, program: Program, prices: PriceList) -> bool:
        """Return whether a program is within the limits."""
        held = holding(program, prices.of(program))
        return self.allow(int(held.bytes.max()), int(held.stored.max()))


class Candidate(NamedTuple):
    """How many graphs are kept, and at which levels.

    Attributes:
        least_seconds: A plan of this kind takes at least that long.
        whole: a, the last steps whose whole graphs are kept.
        cut: b, the steps before them whose graphs are kept, cut into blocks.
        level: The level of those.
        attention: Whether steps that run again whole are given attention's outputs.
    """

    least_seconds: float
    whole: int
    cut: int
    level: Level
    attention: bool


def fastest_levels(
    prices: PriceList, limits: Limits, as_run: Callable[[Plan], Plan]
) -> Plan | None:
    """Return the fastest plan that keeps every node, at any levels; None if none fits.

    Args:
        prices: What graphs cost at each level.
        limits: The budget.
        as_run: Turns a plan into the plan that a chain carries out.
    """
    best: tuple[tuple[float, int], Program] | None = None
    programs = _Programs(prices, as_run)
    queue = [*_candidates(prices, limits, programs)]
    heapq.heapify(queue)
    while queue and (best is None or queue[0].least_seconds <= best[0][0]):
        program = programs.at_levels(heapq.heappop(queue), limits)
        if program is not None:
            found = prices.of(program)
            cost = seconds(program, found), peak(program, found)
            best = min(best or (cost, program), (cost, program), key=lambda each: each[0])
    return None if best is None else Plan.of(best[1])


class _Programs:
    """Programs that keep every node and the last k graphs, as a chain carries them out."""

    def __init__(self, prices: PriceList, as_run: Callable[[Plan], Plan]) -> None:
        self.prices, self.as_run = prices, as_run
        self._known: dict[int, Program] = {}

    def keeping(self, count: int) -> Program:
        """Return the program that keeps the graphs of the last steps."""
        if count not in self._known:
            self._known[count] = self.as_run(keep_last(len(self.prices.costs), count)).program
        return self._known[count]

    def at_levels(self, candidate: Candidate, limits: Limits) -> Program | None:
        """Return a candidate's program with the fastest levels that fit, or None."""
        program = self.keeping(candidate.whole + candidate.cut)
        kept = _kept_levels(program.num_steps, candidate)
        attention = candidate.attention
        found = with_levels(program, kept, self.prices, limits.device, attention=attention)
        return found if found is not None and limits.hold(found, self.prices) else None


def _kept_levels(num_steps: int, candidate: Candidate) -> NDArray[np.uint8]:
    levels = np.full(num_steps, int(candidate.level), dtype=np.uint8)
    levels[num_steps - candidate.whole :] = Level.WHOLE
    return levels


def _candidates(prices: PriceList, limits: Limits, programs: _Programs) -> Iterator[Candidate]:
    """Yield the candidates whose kept graphs alone do not exceed the budget."""
    M, levels = len(prices.costs), prices.levels
    counts = _counts(M, programs)
    cut = [level for level in levels if Level.BLOCKS in level]
    attentions = (False, True) if Level.ATTENTION in levels else (False,)
    for whole in counts:
        for more in counts:
            if not 1 <= whole + more <= M:
                continue
            for level in cut if more else cut[:1]:
                for attention in attentions if whole + more < M else (False,):
                    found = Candidate(0.0, whole, more, level, attention)
                    kept = programs.keeping(whole + more).recorded_first
                    bound = _bound(found, kept, prices)
                    if limits.allow(bound.device, bound.stored):
                        yield found._replace(least_seconds=bound.seconds)


class _Bound(NamedTuple):
    seconds: float
    device: int
    stored: int


def _bound(candidate: Candidate, kept: NDArray[np.bool_], prices: PriceList) -> _Bound:
    """Return the least that a candidate's plan takes and holds."""
    M = len(kept)
    at = np.array(_kept_levels(M, candidate)), kept.astype(np.intp), np.arange(M)
    graphs, backward = prices.graphs[at], prices.backward[at]
    again = _fastest_rerun(prices, attention=candidate.attention)
    time = prices.forward.sum() + np.where(kept, backward, prices.forward + again).sum()
    return _Bound(float(time) * (1 - 1e-9), int(graphs[kept, 0].sum()), int(graphs[kept, 4].sum()))


def _fastest_rerun(prices: PriceList, *, attention: bool) -> NDArray[np.float64]:
    """Return the least seconds of each step's backward pass after a rerun."""
    whole = Level.ATTENTION if attention else Level.WHOLE
    levels = [level for level in prices.levels if level == whole or Level.BLOCKS in level]
    return prices.backward[levels, 0].min(axis=0)


def _counts(num_steps: int, programs: _Programs) -> list[int]:
    """Return the numbers of kept graphs that are tried."""
    if not programs.keeping(num_steps).recorded_first.any():  # as with micro-batches
        return [0, 1]
    if num_steps <= MANY:
        return [*range(num_steps + 1)]
    return sorted({round(count) for count in np.linspace(0, num_steps, SOME)} | {1})
