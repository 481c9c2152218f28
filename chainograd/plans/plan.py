"""Plans: which states a chain keeps and which steps it runs again. No tensors here.

A plan is a value: two sequences of actions, the first carried out by the forward pass and the
second by the backward pass. It can be printed, compared, drawn and carried out on integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from chainograd.plans.actions import (
    RUNS,
    Action,
    Actions,
    Advance,
    Backprop,
    Drop,
    Keep,
    Load,
    Program,
    Record,
    encoded,
)
from chainograd.plans.costs import Holding, Prices, StepCost, holding, peak, runs, seconds
from chainograd.plans.dry_run import refuse_impossible
from chainograd.plans.timeline import Span, Timeline, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "RUNS",
    "Action",
    "Advance",
    "Backprop",
    "Drop",
    "Held",
    "Keep",
    "Load",
    "Plan",
    "Record",
    "StepCost",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chain does, action by action.

    `keep_last`, `binomial` and `within` make plans. A plan of your own is built from the actions
    in ``chainograd.plans.plan``: ``Advance(i)`` runs step i, ``Record(i)`` runs it with its graph,
    ``Keep(i)`` keeps the state that enters step i, ``Load(i)`` makes that kept state the current
    one, ``Drop(i)`` forgets it, ``Backprop(i)`` sends the cotangent back through step i's graph.

    The forward pass keeps states and runs every step once, in order. The backward pass sends the
    cotangent back through every step once, from the last to the first, each with its graph; there a
    state must be loaded before a step runs, and after ``Record``. The plan is carried out on
    integers when it is made, and one that breaks these rules is refused.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass.
        backward: Actions of the backward pass.
        costs: What each step costs, if that was measured; bytes and seconds follow from it.

    Raises:
        ValueError: If an action cannot be carried out, or a step gets no gradient.
        TypeError: If something among the actions is no action.

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
            return  # both halves of one program, which a planner made or which was checked before
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
        """Step evaluations, forward and backward pass together."""
        return int(runs(self.program).sum())

    @property
    def nodes(self) -> int:
        """The most nodes that are kept at once."""
        return int(self._holding().nodes.max())

    @property
    def graphs(self) -> int:
        """The most graphs that are kept at once."""
        return int(self._holding().graphs.max())

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive at once.

        Raises:
            ValueError: If the plan has no costs.
        """
        return peak(self.program, Prices.of(self._known_costs()))

    @property
    def seconds(self) -> float:
        """Predicted time, forward and backward pass together.

        Raises:
            ValueError: If the plan has no costs.
        """
        return seconds(self.program, Prices.of(self._known_costs()))

    def with_costs(self, costs: tuple[StepCost, ...]) -> Plan:
        """Return the same plan with costs.

        Raises:
            ValueError: If there is not one cost for every step.
        """
        if len(costs) != self.num_steps:
            raise ValueError(f"`costs` has {len(costs)} entries for {self.num_steps} steps.")
        return replace(self, costs=tuple(costs))

    def moments(self) -> Iterator[Held]:
        """Yield what is held during each action."""
        columns = [column.tolist() for column in self._holding()]
        for action, *held in zip((*self.forward, *self.backward), *columns, strict=True):
            yield Held(action, *held)

    def timeline(self) -> Timeline:
        """Return what happens when: in seconds if there are costs, else in step evaluations."""
        costs = self.costs or (_UNIT,) * self.num_steps
        kept: dict[int, float] = {}
        recorded: dict[int, float] = {}
        line = Timeline([], [], [], [], [], 0.0, "step evaluations" if not self.costs else "s")
        now = 0.0
        for position, action in enumerate((*self.forward, *self.backward)):
            i = action.index
            if position == len(self.forward):
                line = line._replace(turn=now)
            match action:
                case Keep():
                    kept[i] = now
                case Drop():
                    line.nodes.append(Span(i, kept.pop(i), now))
                case Advance() | Record():
                    began, now = now, now + costs[i].forward_seconds
                    of_kind = line.records if isinstance(action, Record) else line.advances
                    of_kind.append(Span(i, began, now))
                    if isinstance(action, Record):
                        recorded[i] = began
                case Backprop() if i in recorded:  # else no gradient passes it
                    began, now = now, now + costs[i].backward_seconds
                    line.backprops.append(Span(i, began, now))
                    line.graphs.append(Span(i, recorded.pop(i), now))
        return line

    def draw(self, ax: Axes | None = None) -> Axes:
        """Draw what is kept and what runs, over time. Needs matplotlib.

        Args:
            ax: Where to draw; by default in a new figure.

        Returns:
            The axes drawn on; ``.figure.savefig("plan.png")`` keeps the picture.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        title = (
            f"{self.num_steps} steps, {self.evaluations} evaluations, at most "
            f"{_some(self.nodes, 'node')} and {_some(self.graphs, 'graph')}"
        )
        return draw(self.timeline(), self.num_steps, title, ax)

    def __str__(self) -> str:
        """Return a table: what is kept, what runs, what it costs."""
        M = self.num_steps
        rows = [
            ("steps", f"{M}"),
            ("step evaluations", f"{self.evaluations}   (plain loop: {M})"),
            ("nodes kept", f"{self.nodes}"),
            ("graphs kept", f"{self.graphs}   (plain loop: {M})"),
        ]
        if self.costs is not None:
            plain_bytes = max(sum(cost.graph_bytes for cost in self.costs), 1)
            plain = sum(cost.forward_seconds + cost.backward_seconds for cost in self.costs)
            rows += [
                ("peak", f"{self.peak_bytes / 2**20:.1f} MiB   "
                         f"({self.peak_bytes / plain_bytes:.3f} of the plain loop's graphs)"),
                ("time", f"{self.seconds:.3g} s   ({self.seconds / plain:.2f} of the plain loop)"),
            ]  # fmt: skip
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _holding(self) -> Holding:
        return holding(self.program, Prices.of(self.costs or (_FREE,) * self.num_steps))

    def _known_costs(self) -> tuple[StepCost, ...]:
        if self.costs is None:
            raise ValueError(
                "The plan has no costs: `plan.with_costs(chain.measure(x_T))` gives it some."
            )
        return self.costs


class Held(NamedTuple):
    """What is held during an action: how many nodes and graphs, and how many bytes in all."""

    action: Action
    nodes: int
    graphs: int
    bytes: int


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_FREE = StepCost(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
_UNIT = StepCost(0, 0, 0, 0, 0, 0, 0, 1.0, 1.0)
