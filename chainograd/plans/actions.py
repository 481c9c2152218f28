"""The six actions that a plan consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advance:
    """Run step ``index`` without a graph; its result becomes the current state."""

    index: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Store the current state as node ``index``: the state that enters step ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Load:
    """Make node ``index`` the current state."""

    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free node ``index``."""

    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """Run step ``index`` with its graph, and hold the graph until `Backprop`.

    In the forward pass the step's result becomes the current state. In the backward pass there is
    no current state afterwards: a `Load` must come before the next run.
    """

    index: int


@dataclass(frozen=True, slots=True)
class Backprop:
    """Send the cotangent back through the graph of step ``index``, and free the graph."""

    index: int


Action = Advance | Keep | Load | Drop | Record | Backprop
RUNS = (Advance, Record)  # the actions that run a step
