"""Plans: which states a chain keeps and which steps it runs again. No tensors here.

A plan is a value: two tuples of actions, the first carried out by the forward pass and the second
by the backward pass. It can be printed, compared, drawn and carried out on integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from chainograd.drawing import Span, Timeline, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Advance:
    """Run step ``index`` without a graph; the current state becomes its result."""

    index: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the current state as node ``index``, the state that enters step ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Load:
    """Make node ``index`` the current state."""

    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget node ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """Run step ``index`` with its graph, which is kept; the current state becomes its result."""

    index: int


@dataclass(frozen=True, slots=True)
class Backprop:
    """Send the cotangent back through the graph of step ``index``, which is freed."""

    index: int


Action = Advance | Keep | Load | Drop | Record | Backprop
RUNS = (Advance, Record)  # those that run a step


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step costs; bytes are those alive besides kept nodes and graphs.

    Attributes:
        node_bytes: The state that enters the step.
        result_bytes: The state that leaves the step; its cotangent is as large.
        graph_bytes: What is kept of a recorded step until its backward pass, besides these states.
        advance_bytes: The most that is alive while the step runs without a graph.
        record_bytes: The most that is alive while it runs with one.
        backprop_bytes: The most that is alive while the cotangent passes, the graph included.
        gradient_bytes: Gradients of what the steps share.
        forward_seconds: Time to run it.
        backward_seconds: Time of its backward pass.
        stored_bytes: What the state takes on its device as a kept node, where a store keeps
            something else than the state itself.
        first_backprop_bytes: What ``backprop_bytes`` is for the first cotangent that passes, where
            there are no gradients yet to be added to; None if it is the same.
    """

    node_bytes: int
    result_bytes: int
    graph_bytes: int
    advance_bytes: int
    record_bytes: int
    backprop_bytes: int
    gradient_bytes: int = 0
    forward_seconds: float = 1.0
    backward_seconds: float = 1.0
    stored_bytes: int | None = None
    first_backprop_bytes: int | None = None

    @property
    def kept_bytes(self) -> int:
        """What a kept node takes on the device."""
        return self.node_bytes if self.stored_bytes is None else self.stored_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chain does, action by action.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass; they end with the chain's result as current state.
        backward: Actions of the backward pass; they send the cotangent back through every step.
        costs: What each step costs, if that was measured; bytes and seconds follow from it.
    """

    num_steps: int
    forward: tuple[Action, ...]
    backward: tuple[Action, ...]
    costs: tuple[StepCost, ...] | None = None

    @property
    def evaluations(self) -> int:
        """Step evaluations, forward and backward pass together."""
        actions = (*self.forward, *self.backward)
        return sum(isinstance(action, (Advance, Record)) for action in actions)

    @property
    def nodes(self) -> int:
        """The most nodes that are kept at once."""
        return max(held.nodes for held in self.moments())

    @property
    def graphs(self) -> int:
        """The most graphs that are kept at once."""
        return max(held.graphs for held in self.moments())

    @property
    def peak_bytes(self) -> int:
        """The most bytes that are alive at once.

        Raises:
            ValueError: If the plan has no costs.
        """
        return max(held.bytes for held in self._with_costs().moments())

    @property
    def seconds(self) -> float:
        """Predicted time, forward and backward pass together.

        Raises:
            ValueError: If the plan has no costs.
        """
        costs = self._with_costs().costs
        assert costs is not None
        total = sum(cost.backward_seconds for cost in costs)
        for action in (*self.forward, *self.backward):
            if isinstance(action, (Advance, Record)):
                total += costs[action.index].forward_seconds
        return total

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
        costs = self.costs or (_FREE,) * self.num_steps
        kept: set[int] = set()
        first: set[int] = set()  # steps that the forward pass recorded
        recorded: set[int] = set()  # steps whose graph is there
        state = node_bytes = graphs = graph_bytes = gradient_bytes = result_bytes = given = 0
        for position, action in enumerate((*self.forward, *self.backward)):
            i = action.index
            backward = position >= len(self.forward)
            # The state between two actions is alive too, unless it is a node or the result.
            loose = 0 if state == self.num_steps else _beside(costs[state], state in kept)
            extra = 0
            match action:
                case Keep():
                    kept.add(i)
                    node_bytes, loose = node_bytes + costs[i].kept_bytes, _beside(costs[i], True)
                case Drop():
                    kept.remove(i)
                    node_bytes, loose = node_bytes - costs[i].kept_bytes, 0
                case Load():
                    state, loose = i, _beside(costs[i], True)
                case Advance():
                    extra, state = costs[i].advance_bytes, i + 1
                case Record():
                    extra, state = costs[i].record_bytes, i + 1
                case Backprop() if i in recorded:  # else no gradient passes it
                    first_bytes = None if gradient_bytes else costs[i].first_backprop_bytes
                    extra = costs[i].backprop_bytes if first_bytes is None else first_bytes
                    extra -= costs[i].graph_bytes
                    loose = 0 if i in first else _beside(costs[i], i in kept)
                    if i < self.num_steps - 1:  # the state it gave, which is no node any more
                        loose += costs[i].result_bytes
            # Once the result is there it stays, and on the way back there is its cotangent.
            cotangent = costs[i].result_bytes if backward else 0
            cotangent += given
            if backward and costs[i].stored_bytes is not None:
                loose += costs[i].node_bytes  # the next node is on its way back already
            held = node_bytes + graph_bytes + loose + gradient_bytes + result_bytes + cotangent
            yield Held(action, len(kept), graphs + isinstance(action, Record), held + extra)
            if isinstance(action, Record):
                recorded.add(i)
                graphs, graph_bytes = graphs + 1, graph_bytes + costs[i].graph_bytes
                if not backward:  # the state that enters a graph is on the device as long as that
                    first.add(i)
                    graph_bytes += _beside(costs[i], True)
            elif isinstance(action, Backprop) and i in recorded:
                recorded.remove(i)
                graphs, graph_bytes = graphs - 1, graph_bytes - costs[i].graph_bytes
                graph_bytes -= _beside(costs[i], True) if i in first else 0
                gradient_bytes = costs[i].gradient_bytes
                given = costs[-1].result_bytes  # the caller's cotangent stays to the end
            if state == self.num_steps:
                result_bytes = costs[-1].result_bytes

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
                case Backprop():
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

    def _with_costs(self) -> Plan:
        if self.costs is None:
            raise ValueError(
                "The plan has no costs: `plan.with_costs(chain.measure(x_T))` gives it some."
            )
        return self


class Held(NamedTuple):
    """What is held during an action: how many nodes and graphs, and how many bytes in all."""

    action: Action
    nodes: int
    graphs: int
    bytes: int


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _beside(cost: StepCost, kept: bool) -> int:
    """Return what the current state takes besides the kept nodes, which may hold it."""
    return 0 if kept and cost.stored_bytes is None else cost.node_bytes


_FREE = StepCost(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
_UNIT = StepCost(0, 0, 0, 0, 0, 0, 0, 1.0, 1.0)
