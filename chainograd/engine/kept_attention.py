"""Whole steps whose attention does not run again: its outputs are kept from the first run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from chainograd.blocks.attention import AttentionOutputs, keeping, replaying
from chainograd.engine.abstract_step import GraphOptions
from chainograd.engine.comparison import Comparison
from chainograd.engine.graph import Mark
from chainograd.engine.running import cutting
from chainograd.storage.kept_tensors import Keeper, KeptTensors


@dataclass(slots=True, eq=False)
class KeptAttention:
    """The outputs of attention in the first run of one step: an entry for each slice of it.

    Attributes:
        step: The step's index.
        comparison: Compares what attention is given in the rerun with what it was given first.
        keeper: Keeps tensors.
        runs: What is kept of each slice; a rerun takes them in order.
        begun: Whether the step runs again by now.
    """

    step: int
    comparison: Comparison
    keeper: Keeper
    runs: deque[tuple[AttentionOutputs, KeptTensors]] = field(default_factory=deque)
    begun: bool = False

    def clear(self) -> None:
        """Forget a first run that must begin again."""
        self.runs.clear()

    def saving(self, options: GraphOptions) -> AbstractContextManager[object]:
        """Return the context that says what a graph saves."""
        return options.layers()

    @contextmanager
    def cutting(self, mark: Mark, options: GraphOptions, *, discarded: bool) -> Iterator[None]:
        """Return the context in which the step runs: see `AbstractCut`."""
        with cutting(None):
            if not discarded and self.runs:
                outputs, kept = self.runs.popleft()
                outputs.put(kept.load())
                with replaying(outputs):
                    yield
                if outputs.verifier is not None:
                    words = "ran again, and its attention was given other values"
                    self.comparison.adopt(self.step, outputs.verifier, words)
            elif discarded and not self.begun:
                with keeping(self.comparison.of_values()) as outputs:
                    yield
                self.runs.append((outputs, self.keeper.keep(outputs.take())))
            else:
                yield
