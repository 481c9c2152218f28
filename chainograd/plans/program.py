"""A plan's actions as arrays of integers, which are fast to build, to change and to price."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from chainograd.plans.actions import Action, Advance, Backprop, Drop, Keep, Load, Record

KINDS: tuple[type[Action], ...] = (Advance, Keep, Load, Drop, Record, Backprop)
ADVANCE, KEEP, LOAD, DROP, RECORD, BACKPROP = range(6)
WIDTH = 8  # the code of an action: WIDTH times its index, plus its kind

Codes = NDArray[np.int32]


def codes(kind: int, start: int, stop: int) -> Codes:
    """Return the codes of one kind of action on the steps ``start`` to ``stop - 1``."""
    return np.arange(WIDTH * start + kind, WIDTH * stop + kind, WIDTH, dtype=np.int32)


def kinds_of(codes: Codes) -> Codes:
    """Return the kinds of actions."""
    return codes & (WIDTH - 1)


def indices_of(codes: Codes) -> Codes:
    """Return the step of each action."""
    return codes >> 3


def mask_of(count: int, indices: Codes | Sequence[int]) -> NDArray[np.bool_]:
    """Return a mask of ``count`` entries that is true at ``indices``."""
    mask = np.zeros(count, dtype=bool)
    mask[indices] = True
    return mask


def encoded(actions: Iterable[Action]) -> Codes:
    """Return actions as codes.

    Raises:
        TypeError: If an entry is not an action with an integer index.
    """
    kind_of = {kind: code for code, kind in enumerate(KINDS)}
    actions = tuple(actions)
    for position, action in enumerate(actions):
        if type(action) not in kind_of or type(action.index) is not int:
            raise TypeError(
                f"Entry {position} of the plan is {action!r}, which is not an action on a step. "
                "Build plans from the actions in `chainograd.plans.plan`, such as `Advance(0)`."
            )
    return np.array([WIDTH * a.index + kind_of[type(a)] for a in actions], dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Both halves of a plan as codes.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass.
        backward: Actions of the backward pass.
        levels: The `Level` of each step, one byte each; by default every step is whole.
    """

    num_steps: int
    forward: Codes
    backward: Codes
    levels: bytes = b""

    def __post_init__(self) -> None:
        if not self.levels:
            object.__setattr__(self, "levels", bytes(self.num_steps))

    def __reduce__(self) -> Any:
        """Return the constructor and its arguments, for pickling and copying."""
        return Program, (self.num_steps, self.forward, self.backward, self.levels)

    @property
    def recorded_first(self) -> NDArray[np.bool_]:
        """Which steps have their graph recorded in the forward pass."""
        recorded = indices_of(self.forward[kinds_of(self.forward) == RECORD])
        return mask_of(self.num_steps, recorded)


class Actions(Sequence[Action]):
    """One half of a program as a sequence of actions, decoded on first use."""

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
        """Return one action, or a tuple of actions for a slice."""
        return self._actions()[at]

    def __iter__(self) -> Iterator[Action]:
        """Return an iterator over the actions, in order."""
        return iter(self._actions())

    def __len__(self) -> int:
        """Return the number of actions."""
        return len(self._codes)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence has the same actions."""
        if isinstance(other, Actions):
            same = self.program.levels == other.program.levels
            return same and np.array_equal(self._codes, other._codes)
        return self._actions() == other

    def __hash__(self) -> int:
        """Return the hash of the same actions in a tuple."""
        return hash(self._actions())

    def __repr__(self) -> str:
        """Return the text of the same actions in a tuple."""
        return repr(self._actions())
