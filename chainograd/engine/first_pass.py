"""What the forward pass of a run finds out about its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chainograd.engine.step_result import Alias, StepResult


@dataclass(slots=True, eq=False)
class FirstPass:
    """What the forward pass has found out about the steps so far.

    Attributes:
        wanted: Which leaves of each state need a gradient.
        specs: How the leaves of each state belong together.
        used: Places of the tensors that the steps share which some step uses.
        entered: How often each step uses the leaves of its state, by their places.
        aliases: Leaves that each step returns which are tensors from elsewhere.
        first: The first step that a gradient needs; those before it are never run again.
    """

    wanted: list[list[bool]]
    specs: list[Any]
    used: set[int] = field(default_factory=set)
    entered: list[dict[int, int]] = field(default_factory=list)
    aliases: list[dict[int, Alias]] = field(default_factory=list)
    first: int = 0

    def note(self, i: int, result: StepResult) -> None:
        """Note what the first run of step i has shown."""
        self.wanted.append(result.wanted)
        self.specs.append(result.leaving.spec)
        self.used |= result.used
        self.entered.append(result.entered)
        self.aliases.append(result.aliases)
        if i == self.first and not any(result.wanted):
            self.first = i + 1
