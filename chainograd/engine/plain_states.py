"""The plain loop over the user's step: what a chain does where it has no gradient to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from chainograd.engine.prepare import Preparation
from chainograd.errors import ChainError
from chainograd.state import State
from chainograd.torch_internals.transforms import forward_ad_active, transforms_active


def plain_states(preparation: Preparation, x: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the states of the plain loop, x first.

    Args:
        preparation: What the chain makes its runs from.
        x: The state that enters step 0.
        args: Passed to every step.
        kwargs: Passed to every step.

    Raises:
        ChainError: If a ``grad_transform`` is to reach into a torch.func transform.
    """
    options = preparation.options
    if options.transform is not None and transformed():
        raise ChainError(
            "`grad_transform` does not reach into torch.func transforms, vmap and forward-mode "
            "AD, where the plain loop runs. Leave it out there, or use `backward()`."
        )
    yield x
    if preparation.micro_batch is not None and not transformed():
        whole = replace(preparation, options=replace(options, grad_steps=None))
        step, state = whole.run(x, args, kwargs).step, State.of(x)
        for i in range(preparation.num_steps):
            state = step(i, state)
            yield state.tree()
        return
    for i in range(preparation.num_steps):
        x = preparation.function(x, i, *args, **kwargs)
        if not options.passes(i):
            x = State.of(x).detached().tree()
        yield x


def transformed() -> bool:
    """Return whether a torch.func transform or forward-mode AD is at work."""
    return transforms_active() or forward_ad_active()
