"""What a plan is made of: actions, and a program of them as integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


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
    """Run step ``index`` with its graph, which is kept.

    In the forward pass the current state becomes the step's result. In the backward pass there is
    no current state afterwards: a `Load` comes before the next run.
    """

    index: int


@dataclass(frozen=True, slots=True)
class Backprop:
    """Send the cotangent back through the graph of step ``index``, which is freed."""

    index: int


Action = Advance | Keep | Load | Drop | Record | Backprop
RUNS = (Advance, Record)  # those that run a step

KINDS: tuple[type[Action], ...] = (Advance, Keep, Load, Drop, Record, Backprop)
ADVANCE, KEEP, LOAD, DROP, RECORD, BACKPROP = range(6)
WIDTH = 8  # an action as an integer: WIDTH times its index, plus its kind

Codes = NDArray[np.int32]


def codes(kind: int, start: int, stop: int) -> Codes:
    """Return actions of one kind, of steps ``start`` to ``stop - 1``."""
    return np.arange(WIDTH * start + kind, WIDTH * stop + kind, WIDTH, dtype=np.int32)


def kinds_of(codes: Codes) -> Codes:
    """Return the kinds of actions."""
    return codes & (WIDTH - 1)


def indices_of(codes: Codes) -> Codes:
    """Return the steps of actions."""
    return codes >> 3


def encoded(actions: Iterable[Action]) -> Codes:
    """Return actions as integers.

    Raises:
        TypeError: If something among them is no action.
    """
    kind_of = {kind: code for code, kind in enumerate(KINDS)}
    actions = tuple(actions)
    for position, action in enumerate(actions):
        if type(action) not in kind_of or type(action.index) is not int:
            raise TypeError(
                f"A plan consists of actions on steps, such as `chainograd.plans.plan.Advance(0)`; "
                f"entry {position} is {action!r}."
            )
    return np.array([WIDTH * a.index + kind_of[type(a)] for a in actions], dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A plan's actions as integers: quick to make, to change and to weigh.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass.
        backward: Actions of the backward pass.
    """

    num_steps: int
    forward: Codes
    backward: Codes

    def __reduce__(self) -> Any:
        """Return what makes a copy."""
        return Program, (self.num_steps, self.forward, self.backward)


class Actions(Sequence[Action]):
    """One half of a program as a sequence of actions, which are made when they are asked for."""

    __slots__ = ("_codes", "_made", "program")

    def __init__(self, program: Program, *, backward: bool) -> None:
        self.program = program
        self._codes = program.backward if backward else program.forward
        self._made: tuple[Action, ...] | None = None

    def _actions(self) -> tuple[Action, ...]:
        if self._made is None:
            known: dict[int, Action] = {}
            listed = self._codes.tolist()
            for code in set(listed):
                known[code] = KINDS[code % WIDTH](code // WIDTH)
            self._made = tuple(map(known.__getitem__, listed))
        return self._made

    @overload
    def __getitem__(self, at: int) -> Action: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Action, ...]: ...
    def __getitem__(self, at: int | slice) -> Action | tuple[Action, ...]:
        """Return an action, or a tuple of them."""
        return self._actions()[at]

    def __iter__(self) -> Iterator[Action]:
        """Return the actions in order."""
        return iter(self._actions())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._codes)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same actions."""
        if isinstance(other, Actions):
            return np.array_equal(self._codes, other._codes)
        return self._actions() == other

    def __hash__(self) -> int:
        """Return the hash of the tuple that this stands for."""
        return hash(self._actions())

    def __repr__(self) -> str:
        """Return the tuple's text."""
        return repr(self._actions())
