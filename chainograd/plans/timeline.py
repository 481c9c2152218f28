"""What a plan does when, as spans of time and as a picture: time to the right, steps upwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chainograd.plans.actions import Action, Advance, Backprop, Drop, Keep, Record
from chainograd.plans.costs import StepCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time that belongs to one step."""

    index: int
    begin: float
    end: float


class Timeline(NamedTuple):
    """What a plan does when.

    Attributes:
        advances: Runs of a step without a graph.
        records: Runs of a step with its graph.
        backprops: Backward passes of a step.
        nodes: Nodes, from `Keep` to `Drop`.
        graphs: Whole graphs, from `Record` to `Backprop`.
        cut: The same of graphs that are cut into blocks.
        turn: When the backward pass begins.
        unit: The unit of time.
    """

    advances: list[Span]
    records: list[Span]
    backprops: list[Span]
    nodes: list[Span]
    graphs: list[Span]
    cut: list[Span]
    turn: float
    unit: str


def timeline(
    forward: Sequence[Action],
    backward: Sequence[Action],
    costs: Sequence[StepCost],
    unit: str,
    cut: frozenset[int] = frozenset(),
) -> Timeline:
    """Return the timeline of a plan's actions.

    Args:
        forward: Actions of the forward pass.
        backward: Actions of the backward pass.
        costs: The cost of each step.
        unit: The unit of the costs' seconds.
        cut: The steps whose graphs are cut into blocks.
    """
    clock = _Clock(Timeline([], [], [], [], [], [], 0.0, unit), costs, cut)
    for action in forward:
        clock.carry_out(action)
    turn = clock.now
    for action in backward:
        clock.carry_out(action)
    return clock.line._replace(turn=turn)


class _Clock:
    """Carries actions out, and notes in ``line`` when each one begins and ends."""

    def __init__(
        self, line: Timeline, costs: Sequence[StepCost], cut: frozenset[int] = frozenset()
    ) -> None:
        self.line, self.cut = line, cut
        self.costs = costs
        self.now = 0.0
        self.kept: dict[int, float] = {}
        self.recorded: dict[int, float] = {}

    def carry_out(self, action: Action) -> None:
        line, i = self.line, action.index
        match action:
            case Keep():
                self.kept[i] = self.now
            case Drop():
                line.nodes.append(Span(i, self.kept.pop(i), self.now))
            case Advance():
                line.advances.append(self._pass(i, self.costs[i].forward_seconds))
            case Record():
                self.recorded[i] = self.now
                line.records.append(self._pass(i, self.costs[i].forward_seconds))
            case Backprop() if i in self.recorded:  # the gradient passes no other step
                line.backprops.append(self._pass(i, self.costs[i].backward_seconds))
                graphs = line.cut if i in self.cut else line.graphs
                graphs.append(Span(i, self.recorded.pop(i), self.now))

    def _pass(self, i: int, seconds: float) -> Span:
        begin, self.now = self.now, self.now + seconds
        return Span(i, begin, self.now)


_COLOURS = {"node kept": "#c9d6e4", "graph kept": "#f3c98b", "blocks' inputs kept": "#cfe3b4",
            "step run": "#3b6ea5",
            "step run with its graph": "#d9822b", "backward pass": "#5b5b5b"}  # fmt: skip


def draw(timeline: Timeline, num_steps: int, title: str, ax: Axes | None = None) -> Axes:
    """Draw a timeline.

    Args:
        timeline: The timeline.
        num_steps: Number of steps.
        title: Text above the picture.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    rows = (
        timeline.nodes, timeline.graphs, timeline.cut,
        timeline.advances, timeline.records, timeline.backprops,
    )  # fmt: skip
    for (label, colour), spans in zip(_COLOURS.items(), rows, strict=True):
        height = 0.9 if label.endswith("kept") else 0.45
        if spans:
            _draw_spans(ax, spans, height=height, color=colour, label=label)
    _label(ax, timeline, num_steps, title)
    return ax


def _draw_spans(ax: Axes, spans: Sequence[Span], **options: object) -> None:
    ax.barh(
        [span.index for span in spans],
        [span.end - span.begin for span in spans],
        left=[span.begin for span in spans],
        **options,  # pyright: ignore[reportArgumentType]
    )


def _label(ax: Axes, timeline: Timeline, num_steps: int, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.axvline(timeline.turn, color="#5b5b5b", linewidth=0.8, linestyle=":")
    ax.set(xlabel=f"time ({timeline.unit})", ylabel="step", ylim=(-0.6, num_steps - 0.4))
    ax.set_title(title, loc="left", fontsize="medium")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
