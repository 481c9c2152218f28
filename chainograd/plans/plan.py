"""A plan: which states a chain keeps, and which steps it runs again.

A plan is a value: two sequences of actions, one for the forward pass and one for the backward pass.
It can be printed, compared, drawn, priced and carried out on integers. There are no tensors here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from chainograd.plans.actions import RUNS, Action, Advance, Backprop, Drop, Keep, Load, Record
from chainograd.plans.costs import BlockCost, GraphCost, StepCost, prices_of
from chainograd.plans.dry_run import refuse_impossible
from chainograd.plans.holding import Holding, holding, most_stored, peak, runs, seconds
from chainograd.plans.levels import Level, encoded_levels, level_name
from chainograd.plans.operations import total_flops
from chainograd.plans.program import Actions, Program, encoded
from chainograd.plans.table import FREE, table
from chainograd.plans.timeline import Timeline, draw, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "RUNS",
    "Action",
    "Advance",
    "Backprop",
    "BlockCost",
    "Drop",
    "GraphCost",
    "Held",
    "Keep",
    "Level",
    "Load",
    "Plan",
    "Record",
    "StepCost",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chain does, action by action.

    `keep_last`, `binomial` and `within` make plans. To build your own, use the actions in
    ``chainograd.plans.plan``: ``Advance(i)`` runs step i, ``Record(i)`` runs it with its graph,
    ``Keep(i)`` stores the state that enters step i as node i, ``Load(i)`` makes node i the current
    state, ``Drop(i)`` frees node i, and ``Backprop(i)`` sends the cotangent back through the graph
    of step i.

    The forward pass runs every step once, in order, and keeps nodes. The backward pass sends the
    cotangent back through every step once, from the last to the first, each with its graph. There,
    a node must be loaded before a step runs, and again after each ``Record``. A new plan is carried
    out on integers, and refused if it breaks these rules.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass.
        backward: Actions of the backward pass.
        costs: The cost of each step, if it was measured; bytes and seconds follow from it.

    Raises:
        ValueError: If an action cannot be carried out, or a step gets no gradient.
        TypeError: If an entry is not an action.

    Example:
        >>> from chainograd.plans.plan import Backprop, Keep, Load, Record, Advance
        >>> forward = (Keep(0), Advance(0), Record(1))
        >>> Plan(2, forward, (Backprop(1), Load(0), Record(0), Backprop(0))).evaluations
        3
    """

    num_steps: int
    forward: Sequence[Action]
    backward: Sequence[Action]
    costs: tuple[StepCost, ...] | None = None

    def __post_init__(self) -> None:
        halves = (self.forward, self.backward)
        owners = [half.program for half in halves if isinstance(half, Actions)]
        if len(owners) == 2 and owners[0] is owners[1] and owners[0].num_steps == self.num_steps:
            return  # both halves of one program: a planner made it, or it was checked before
        forward, backward = map(tuple, halves)
        program = Program(self.num_steps, encoded(forward), encoded(backward))
        refuse_impossible(self.num_steps, forward, backward)
        object.__setattr__(self, "forward", Actions(program, backward=False))
        object.__setattr__(self, "backward", Actions(program, backward=True))

    @classmethod
    def of(cls, program: Program, costs: tuple[StepCost, ...] | None = None) -> Plan:
        """Return the plan of a program that is known to be possible."""
        halves = Actions(program, backward=False), Actions(program, backward=True)
        return cls(program.num_steps, *halves, costs)

    @property
    def program(self) -> Program:
        """The actions as integers."""
        assert isinstance(self.forward, Actions)
        return self.forward.program

    @property
    def evaluations(self) -> int:
        """Number of step evaluations in both passes together."""
        return int(runs(self.program).sum())

    @property
    def nodes(self) -> int:
        """The most nodes that are held at once."""
        return int(self._holding().nodes.max())

    @property
    def graphs(self) -> int:
        """The most graphs that are held at once."""
        return int(self._holding().graphs.max())

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory, in bytes.

        Raises:
            ValueError: If the plan has no costs.
        """
        return peak(self.program, prices_of(self.program, self._known_costs()))

    @property
    def stored_bytes(self) -> int:
        """Predicted peak in the store, if that is the host's memory or a folder.

        Raises:
            ValueError: If the plan has no costs.
        """
        return most_stored(self.program, prices_of(self.program, self._known_costs()))

    @property
    def flops(self) -> int:
        """Predicted floating-point operations of both passes together.

        Raises:
            ValueError: If the plan has no costs, or none that were measured on fake tensors.
        """
        flops = total_flops(self.program, self._known_costs())
        if flops is None:
            raise ValueError(
                "The plan's costs have no operations: `chain.measure` counts them on fake tensors. "
                "Call it under `torch._subclasses.fake_tensor.FakeTensorMode`."
            )
        return flops

    @property
    def is_cut(self) -> bool:
        """Whether some step is at another level than whole."""
        return any(self.program.levels)

    @property
    def levels(self) -> tuple[str, ...]:
        """The name of each step's level: graph, node, blocks or skeleton, and "+attention"."""
        kept = self.program.recorded_first
        pairs = zip(map(Level, self.program.levels), kept, strict=True)
        return tuple(level_name(level, kept=bool(first)) for level, first in pairs)

    @property
    def seconds(self) -> float:
        """Predicted time of both passes together.

        Raises:
            ValueError: If the plan has no costs.
        """
        return seconds(self.program, prices_of(self.program, self._known_costs()))

    def with_costs(self, costs: tuple[StepCost, ...]) -> Plan:
        """Return the same plan with costs.

        Raises:
            ValueError: If the number of costs is not the number of steps.
        """
        if len(costs) != self.num_steps:
            raise ValueError(
                f"`costs` has {len(costs)} entries, but the plan has {self.num_steps} steps. "
                "Pass what `chain.measure` returns for a chain of this length."
            )
        return replace(self, costs=tuple(costs))

    def with_levels(self, levels: Level | Sequence[Level]) -> Plan:
        """Return the plan with steps' graphs made at other levels.

        Args:
            levels: One level a step, or one for all.

        Raises:
            ValueError: If the number of levels is not the number of steps.
            TypeError: If one of them is not a `Level`.

        Example:
            >>> from chainograd.plans.planners import keep_last
            >>> keep_last(3, 1).with_levels(Level.BLOCKS).levels
            ('blocks', 'blocks', 'skeleton')
        """
        each = (levels,) * self.num_steps if isinstance(levels, Level) else tuple(levels)
        wrong = [level for level in each if not isinstance(level, Level)]
        if wrong:
            raise TypeError(f"`levels` must be `Level` values, got {wrong[0]!r}.")
        if len(each) != self.num_steps:
            raise ValueError(
                f"`levels` has {len(each)} entries, but the plan has {self.num_steps} steps. Pass "
                "one level for each step, or one `Level` for all."
            )
        return Plan.of(replace(self.program, levels=encoded_levels(each)), self.costs)

    def moments(self) -> Iterator[Held]:
        """Yield what is held during each action."""
        columns = [column.tolist() for column in self._holding()[:3]]
        for action, *held in zip((*self.forward, *self.backward), *columns, strict=True):
            yield Held(action, *held)

    def timeline(self) -> Timeline:
        """Return what happens when: in seconds if there are costs, else in step evaluations."""
        unit = "s" if self.costs else "step evaluations"
        pairs = zip(self.program.levels, self.program.recorded_first, strict=True)
        costs = [
            replace(cost, backward_seconds=_seconds_back(cost, Level(code), bool(kept)))
            for cost, (code, kept) in zip(
                self.costs or (_UNIT,) * self.num_steps, pairs, strict=True
            )
        ]
        cut = frozenset(i for i, code in enumerate(self.program.levels) if code & Level.BLOCKS)
        return timeline(self.forward, self.backward, costs, unit, cut)

    def draw(self, ax: Axes | None = None) -> Axes:
        """Draw over time what is held and what runs. Needs matplotlib.

        Args:
            ax: Where to draw; by default in a new figure.

        Returns:
            The axes; ``.figure.savefig("plan.png")`` saves the picture.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        title = (
            f"{self.num_steps} steps, {self.evaluations} evaluations, at most "
            f"{_some(self.nodes, 'node')} and {_some(self.graphs, 'graph')}"
        )
        return draw(self.timeline(), self.num_steps, title, ax)

    def __str__(self) -> str:
        """Return a table of what is held, what runs and what that costs."""
        return table(self.program, self.costs)

    def _holding(self) -> Holding:
        costs = self.costs or (FREE,) * self.num_steps
        return holding(self.program, prices_of(self.program, costs))

    def _known_costs(self) -> tuple[StepCost, ...]:
        if self.costs is None:
            raise ValueError(
                "The plan has no costs, so its bytes and seconds are not known. Add costs with "
                "`plan.with_costs(chain.measure(x_T))`."
            )
        for i, level in enumerate(self.program.levels):
            if level:
                self.costs[i].graph(Level(level), kept=bool(self.program.recorded_first[i]))
        return self.costs


class Held(NamedTuple):
    """What is held during an action: the number of nodes and graphs, and all bytes."""

    action: Action
    nodes: int
    graphs: int
    bytes: int


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _seconds_back(cost: StepCost, level: Level, kept: bool) -> float:
    """Return the time of a backward pass; without measured costs, that of a block run again."""
    if cost is _UNIT:
        return 2.0 if Level.BLOCKS in level else 1.0
    return cost.graph(level, kept=kept).backward_seconds


_UNIT = StepCost(0, 0, 0, 0, 0, 0, 0, 1.0, 1.0)
