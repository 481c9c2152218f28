"""A dry run of a plan on integers: the state that enters step i is the number i."""

from __future__ import annotations

from collections.abc import Sequence

from chainograd.plans.actions import Action, Advance, Backprop, Drop, Keep, Load, Record


def refuse_impossible(
    num_steps: int, forward: Sequence[Action], backward: Sequence[Action]
) -> None:
    """Raise unless a plan can be carried out and gives every step its gradient.

    Raises:
        ValueError: If it cannot. The error names the action, its place and what was expected.
    """
    if type(num_steps) is not int or num_steps < 1:
        raise ValueError(f"`num_steps` must be an integer of at least 1, got {num_steps!r}.")
    run = DryRun(num_steps)
    for half, actions in (("forward", forward), ("backward", backward)):
        carry_out = run.forward if half == "forward" else run.backward
        for position, action in enumerate(actions):
            wrong = carry_out(action)
            if wrong is not None:
                raise ValueError(f"`{half}[{position}]` of the plan is {action}, but {wrong}.")
        wrong = run.missing(half)
        if wrong is not None:
            raise ValueError(f"`{half}` of the plan is not complete: {wrong}.")


class DryRun:
    """A run of a chain on integers.

    ``forward`` and ``backward`` carry out one action, and return what is wrong with it or None.

    Attributes:
        state: The current state, or None if there is none.
        kept: The nodes.
        graphs: The steps whose graph is held.
        next: The step that the cotangent passes next.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.state: int | None = 0
        self.kept: set[int] = set()
        self.graphs: set[int] = set()
        self.next = num_steps - 1

    def forward(self, action: Action) -> str | None:
        """Carry out an action of the forward pass."""
        if isinstance(action, (Load, Drop, Backprop)):
            return (
                "the forward pass has no such action, only Advance, Record and Keep. Load, Drop "
                "and Backprop belong into `backward`"
            )
        return self._carry_out(action)

    def backward(self, action: Action) -> str | None:
        """Carry out an action of the backward pass."""
        wrong = self._carry_out(action)
        if isinstance(action, Record):
            self.state = None
        return wrong

    def missing(self, half: str) -> str | None:
        """Return what is missing at the end of a half, or None; begin the next half."""
        if half == "forward":
            if self.state != self.num_steps:
                return f"it must run all steps, but ends before step {self.state}"
            self.state = None
        elif self.next >= 0:
            return f"Backprop({self.next}) is missing, so step {self.next} would get no gradient"
        elif self.graphs:
            return f"step {min(self.graphs)} is recorded again, but no Backprop follows"
        return None

    def _carry_out(self, action: Action) -> str | None:
        i = action.index
        if not 0 <= i < self.num_steps:
            return f"the plan has steps 0 … {self.num_steps - 1}"
        match action:
            case Keep():
                return self._keep(i)
            case Load() | Drop():
                return self._take(i, action)
            case Advance() | Record():
                return self._run(i, action)
            case Backprop():
                return self._backprop(i)

    def _keep(self, i: int) -> str | None:
        if i in self.kept:
            return f"node {i} is there already"
        if self.state != i:
            return f"{self._current()}; Keep({i}) needs state {i}, which enters step {i}"
        self.kept.add(i)
        return None

    def _take(self, i: int, action: Load | Drop) -> str | None:
        if i not in self.kept:
            return f"there is no node {i}; Keep({i}) must come before"
        if isinstance(action, Drop):
            self.kept.remove(i)
        else:
            self.state = i
        return None

    def _run(self, i: int, action: Advance | Record) -> str | None:
        if self.state != i:
            return f"{self._current()}; step {i} needs state {i}"
        if isinstance(action, Record):
            if i in self.graphs:
                return f"the graph of step {i} is there already"
            self.graphs.add(i)
        self.state = i + 1
        return None

    def _backprop(self, i: int) -> str | None:
        if i != self.next:
            due = f"Backprop({self.next}) comes next" if self.next >= 0 else "no step is left"
            return f"the cotangent passes every step once, from the last to the first: {due}"
        if i not in self.graphs:
            return f"step {i} has no graph; Record({i}) must come before"
        self.graphs.remove(i)
        self.next -= 1
        return None

    def _current(self) -> str:
        if self.state is None:
            return "there is no current state (Load a node before a run, and after Record)"
        return f"the current state is {self.state}"
