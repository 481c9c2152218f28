"""Which steps the gradient may pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from chainograd.plans.integers import as_integer, is_integer

GradSteps = int | Collection[int]


def resolve_grad_steps(grad_steps: GradSteps, num_steps: int) -> frozenset[int]:
    """Return the steps that ``grad_steps=`` means.

    Raises:
        TypeError: If they are no steps at all.
        ValueError: If there are no such steps.
    """
    if is_integer(grad_steps):
        count = as_integer("grad_steps", grad_steps)
        if not 1 <= count <= num_steps:
            raise ValueError(
                f"`grad_steps` as a number of last steps must lie in 1 … {num_steps}, got {count}."
            )
        return frozenset(range(num_steps - count, num_steps))
    if isinstance(grad_steps, (bool, str, bytes)) or not isinstance(grad_steps, Iterable):
        raise TypeError(
            "`grad_steps` must be a number of last steps, a set of indices, a function of "
            f"`num_steps` that returns either, or None, got {grad_steps!r}. For all steps leave it "
            "out."
        )
    steps = list(grad_steps)
    strange = [i for i in steps if not is_integer(i) or not 0 <= i < num_steps]
    if strange or not steps:
        raise ValueError(
            f"`grad_steps` must hold indices in 0 … {num_steps - 1}, got {sorted(steps, key=str)}."
        )
    return frozenset(as_integer("grad_steps", i) for i in steps)


def drawn(
    grad_steps: GradSteps | Callable[[int], GradSteps] | None, num_steps: int
) -> frozenset[int] | None:
    """Return the steps for one call, asking a function for them; None is all."""
    if grad_steps is None:
        return None
    return resolve_grad_steps(
        grad_steps(num_steps) if callable(grad_steps) else grad_steps, num_steps
    )


def reached(steps: frozenset[int] | None, num_steps: int) -> frozenset[int] | None:
    """Return those steps that a loss on the last state reaches: up to the last one left out.

    Raises:
        ValueError: If there are none.
    """
    if steps is None:
        return None
    first = num_steps
    while first - 1 in steps:
        first -= 1
    if first == num_steps:
        raise ValueError(
            f"`grad_steps` leaves out the last step, {num_steps - 1}, so the result has no "
            "gradient at all. Let it in, or call `trajectory` for losses on earlier states."
        )
    return frozenset(range(first, num_steps))
