"""A plan as a picture: time to the right, steps upwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Span:
    """Something that has to do with one step, from one time to another."""

    index: int
    begin: float
    end: float


class Timeline(NamedTuple):
    """What happens when.

    Attributes:
        advances: Runs of a step without a graph.
        records: Runs of a step with its graph.
        backprops: Backward passes of a step.
        nodes: States, as long as they are kept.
        graphs: Graphs, as long as they are kept.
        turn: When the backward pass begins.
        unit: What time is measured in.
    """

    advances: list[Span]
    records: list[Span]
    backprops: list[Span]
    nodes: list[Span]
    graphs: list[Span]
    turn: float
    unit: str


_COLOURS = {"node kept": "#c9d6e4", "graph kept": "#f3c98b", "step run": "#3b6ea5",
            "step run with its graph": "#d9822b", "backward pass": "#5b5b5b"}  # fmt: skip


def draw(timeline: Timeline, num_steps: int, title: str, ax: Axes | None = None) -> Axes:
    """Draw a timeline.

    Args:
        timeline: What happens when.
        num_steps: How many steps there are.
        title: Stands above the picture.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes drawn on.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if ax is None:
        _, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    kinds = zip(_COLOURS.items(), (timeline.nodes, timeline.graphs, timeline.advances,
                                   timeline.records, timeline.backprops), strict=True)  # fmt: skip
    for (label, colour), spans in kinds:
        kept = label.endswith("kept")
        ax.barh(
            [span.index for span in spans],
            [span.end - span.begin for span in spans],
            left=[span.begin for span in spans],
            height=0.9 if kept else 0.45,
            color=colour,
            label=label,
        )
    ax.axvline(timeline.turn, color="#5b5b5b", linewidth=0.8, linestyle=":")
    ax.set(xlabel=f"time ({timeline.unit})", ylabel="step", ylim=(-0.6, num_steps - 0.4))
    ax.set_title(title, loc="left", fontsize="medium")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    return ax
