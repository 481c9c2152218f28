"""Plans: which states a chain keeps and which steps it runs again. No tensors here.

A plan is a value: two tuples of actions, the first carried out by the forward pass and the second
by the backward pass. It can be printed, compared and carried out on integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

PlanName = Literal["nodes", "graph"]


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
    """Run step ``index`` with its graph, which is kept; the current state becomes its result."""

    index: int


@dataclass(frozen=True, slots=True)
class Backprop:
    """Send the cotangent back through the graph of step ``index``, which is freed."""

    index: int


Action = Advance | Keep | Load | Drop | Record | Backprop


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chain does, action by action.

    Attributes:
        num_steps: Length of the chain.
        forward: Actions of the forward pass; they end with the chain's result as current state.
        backward: Actions of the backward pass; they send the cotangent back through every step.
    """

    num_steps: int
    forward: tuple[Action, ...]
    backward: tuple[Action, ...]

    @property
    def evaluations(self) -> int:
        """Step evaluations, forward and backward pass together.

        Example:
            >>> nodes(10).evaluations, graph(10).evaluations
            (19, 10)
        """
        actions = (*self.forward, *self.backward)
        return sum(isinstance(action, (Advance, Record)) for action in actions)


def nodes(num_steps: int) -> Plan:
    """Return the paper's plan: keep every node, and the graph of the last step.

    Costs 2M-1 evaluations (the last step's graph is still there when the backward pass begins)
    and the memory of M nodes and one step's graph.

    References:
        Zhang et al. (2023), section 4.4 and Algorithm 1, which replay the last step too: 2M.
    """
    last = num_steps - 1
    forward: list[Action] = [Keep(0)]
    for i in range(last):
        forward += [Advance(i), Keep(i + 1)]
    backward: list[Action] = [Backprop(last), Drop(last)]
    for i in range(last - 1, -1, -1):
        backward += [Load(i), Record(i), Backprop(i), Drop(i)]
    return Plan(num_steps, (*forward, Record(last)), tuple(backward))


def graph(num_steps: int) -> Plan:
    """Return the plan of the plain loop: keep every graph, run nothing again.

    Costs M evaluations and the memory of M graphs.
    """
    forward: list[Action] = []
    backward: list[Action] = []
    for i in range(num_steps):
        forward += [Keep(i), Record(i)]
    for i in range(num_steps - 1, -1, -1):
        backward += [Backprop(i), Drop(i)]
    return Plan(num_steps, tuple(forward), tuple(backward))


def resolve(plan: PlanName | Plan, num_steps: int) -> Plan:
    """Return the plan that a user's ``plan=`` means.

    Raises:
        ValueError: If the name is unknown or the plan is for another number of steps.
    """
    if isinstance(plan, Plan):
        if plan.num_steps != num_steps:
            raise ValueError(
                f"`plan` is for {plan.num_steps} steps, but the chain has {num_steps}. Make the "
                "plan with the chain's `num_steps`."
            )
        return plan
    if plan not in get_args(PlanName):
        raise ValueError(
            f"`plan` must be one of {', '.join(map(repr, get_args(PlanName)))} or a Plan, "
            f"got {plan!r}."
        )
    return {"nodes": nodes, "graph": graph}[plan](num_steps)
