"""The report of a run: what each step took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from chainograd.plans.costs import BlockCost


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step took in the last run.

    Attributes:
        index: The step.
        forward_seconds: The time of its first run.
        rerun_seconds: The time of all its reruns. With ``micro_batch`` the reruns are part of
            ``backward_seconds``.
        reruns: How many reruns there were.
        backward_seconds: The time of the cotangent's way through its graph.
        node_bytes: The bytes of the state that enters it.
        graph_bytes: The bytes of its graph; None unless `CheckpointedChain.measure` or a byte
            budget has measured it.
        cotangent_norm: The Euclidean norm of the cotangent of the state that enters it; None if
            the gradient did not come that far, or if torch has no norm for the kind of the tensor.
        level: How its graph was made: graph, node, blocks or skeleton, with "+attention" if
            attention's outputs were kept.
    """

    index: int
    forward_seconds: float
    rerun_seconds: float
    reruns: int
    backward_seconds: float
    node_bytes: int
    graph_bytes: int | None
    cotangent_norm: float | None
    level: str = "node"


class Report(NamedTuple):
    """What each step took in the last run of a chain. Printed, it is a table.

    ``steps`` has one row a step. ``blocks`` says what each block of a step holds, if steps were cut
    into blocks and measured.
    """

    steps: tuple[StepReport, ...]
    blocks: tuple[BlockCost, ...] = ()

    @property
    def evaluations(self) -> int:
        """How often steps ran: the first runs and the reruns."""
        return len(self.steps) + sum(step.reruns for step in self.steps)

    def __str__(self) -> str:
        """Return a table with a row for each step, and one with a row for each block.

        Levels are shown if one of them is not that of a whole step.
        """
        cut = any(step.level not in ("graph", "node") for step in self.steps)
        rows = [(row[0], *row[1 if cut else 2 :]) for row in (_HEAD, *map(_row, self.steps))]
        tables = [_table(rows[0], rows[1:])]
        if self.blocks:
            tables.append(_table(_BLOCK_HEAD, map(_block_row, self.blocks)))
        return "\n\n".join(tables)


_HEAD = (
    "step", "level", "forward", "reruns", "rerun", "backward", "node", "graph", "|cotangent|"
)  # fmt: skip
_BLOCK_HEAD = ("block", "inputs", "graph", "attention", "run")


def _table(head: tuple[str, ...], body: Iterable[tuple[str, ...]]) -> str:
    rows = [head, *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _block_row(block: BlockCost) -> tuple[str, ...]:
    sizes = (block.input_bytes, block.graph_bytes, block.attention_bytes)
    return (
        block.name,
        *(f"{size / 2**10:.1f} KiB" for size in sizes),
        f"{block.seconds * 1e3:.2f} ms",
    )


def _row(step: StepReport) -> tuple[str, ...]:
    graph, norm = step.graph_bytes, step.cotangent_norm
    return (
        f"{step.index}",
        step.level,
        f"{step.forward_seconds * 1e3:.2f} ms",
        f"{step.reruns}",
        f"{step.rerun_seconds * 1e3:.2f} ms",
        f"{step.backward_seconds * 1e3:.2f} ms",
        f"{step.node_bytes / 2**10:.1f} KiB",
        "-" if graph is None else f"{graph / 2**10:.1f} KiB",
        "-" if norm is None else f"{norm:.3g}",
    )
