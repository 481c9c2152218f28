"""What is known of a call of a chain before its first step: options, and the kind of step."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from chainograd.replay.verify import Verify
from chainograd.storage.store import Store

Transform = Callable[[int, Any], Any]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the caller of a chain has chosen.

    Attributes:
        verify: How a recomputed state is compared with the first one.
        transform: Applied to the cotangent of each node.
        grad_steps: Steps that the gradient may pass; None is all of them.
        store: Where nodes live.
        progress: Whether to show a bar.
    """

    verify: Verify = "exact"
    transform: Transform | None = None
    grad_steps: frozenset[int] | None = None
    store: Store = field(default_factory=Store)
    progress: bool = False

    def passes(self, i: int) -> bool:
        """Return whether the gradient may pass step i."""
        return self.grad_steps is None or i in self.grad_steps


@dataclass(frozen=True, slots=True)
class StepKind:
    """What was found out about the user's step before it runs.

    Attributes:
        shapes: Equal for calls for which the same holds: note [First calls].
        compiled: Whether torch.compile made a part of it.
        counts_passes: The class of a module whose hooks pair forward and backward passes.
    """

    shapes: Hashable
    compiled: bool = False
    counts_passes: str | None = None
