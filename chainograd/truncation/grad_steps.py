"""Which steps the gradient passes: what ``grad_steps=`` of a chain means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Generator

from chainograd.plans.integers import as_integer, is_integer
from chainograd.torch_internals.modes import no_dispatch

GradSteps = int | Collection[int]


def resolve_grad_steps(grad_steps: GradSteps, num_steps: int) -> frozenset[int]:
    """Return the steps that ``grad_steps=`` means.

    Raises:
        TypeError: If ``grad_steps`` is neither a number nor a set.
        ValueError: If the chain does not have these steps, or the set is empty.
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
            f"`num_steps` that returns either, or None, got {grad_steps!r}. Leave it out for all "
            "steps."
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
    """Return the steps for one call, calling ``grad_steps`` if it is a function; None means all."""
    if grad_steps is None:
        return None
    return resolve_grad_steps(
        grad_steps(num_steps) if callable(grad_steps) else grad_steps, num_steps
    )


def reached(steps: frozenset[int] | None, num_steps: int) -> frozenset[int] | None:
    """Return the steps that a loss on the last state reaches: those after the last excluded step.

    Raises:
        ValueError: If the last step is excluded.
    """
    if steps is None:
        return None
    first = num_steps
    while first - 1 in steps:
        first -= 1
    if first == num_steps:
        raise ValueError(
            f"`grad_steps` leaves out the last step, {num_steps - 1}, so the result would have no "
            "gradient. Include the last step, or use `chain.trajectory` for losses on earlier "
            "states."
        )
    return frozenset(range(first, num_steps))


def random_suffix(
    least: int = 1, most: int | None = None, *, generator: Generator | None = None
) -> Callable[[int], int]:
    """Return a ``grad_steps`` that lets the gradient pass the last K steps, with a random K.

    K is uniform on ``least … most``. It is drawn once for each call of the chain, before the first
    step runs, so the steps that the gradient passes are always the last K, and a rerun does not
    draw again.

    Args:
        least: The smallest K, at least 1.
        most: The largest K; None means all steps.
        generator: The random generator that K is drawn from; None means torch's global stream on
            the CPU. Processes that must agree on K need generators with the same seed.

    Returns:
        A function of the number of steps, for ``grad_steps=`` of `CheckpointedChain`.

    Raises:
        ValueError: If no K satisfies the arguments. The function that is returned raises if the
            chain is too short.

    References:
        Prabhudesai et al. (2023), Aligning Text-to-Image Diffusion Models with Reward
        Backpropagation (AlignProp): randomized truncation. Published code draws K anew at every
        step, so its steps are not a suffix: the gradient may pass step 3 but not step 4.

    Example:
        >>> from chainograd import CheckpointedChain
        >>> w = torch.ones((), requires_grad=True)
        >>> chain = CheckpointedChain(lambda x, i: w * x, 10, grad_steps=random_suffix(2, 4))
        >>> chain(torch.ones(())).backward()
        >>> int(w.grad) in (2, 3, 4)
        True
    """
    if not is_count(least) or not (most is None or (is_count(most) and least <= most)):
        raise ValueError(
            f"`least` and `most` must be numbers of last steps with 1 <= least <= most, got "
            f"least={least!r} and most={most!r}. Leave `most` out to allow all steps."
        )

    def draw(num_steps: int) -> int:
        highest = num_steps if most is None else most
        if not least <= highest <= num_steps:
            raise ValueError(
                f"`random_suffix(least={least}, most={most})` asks for more steps than the "
                f"{num_steps} of the chain: neither may be above {num_steps}."
            )
        device = "cpu" if generator is None else generator.device
        with no_dispatch():  # a real number, under FakeTensorMode too
            K = torch.randint(least, highest + 1, (), generator=generator, device=device)
            return int(K.item())

    return draw


def is_count(K: object) -> bool:
    """Return whether ``K`` is an integer of at least 1."""
    return isinstance(K, int) and not isinstance(K, bool) and K >= 1
