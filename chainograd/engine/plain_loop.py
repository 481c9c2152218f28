"""The plain loop over a run's steps, with one graph through all of them: for second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from chainograd.engine.run import Run
from chainograd.state import State


def plain_loop(run: Run, inputs: list[Tensor] | None = None) -> tuple[list[State], list[Tensor]]:
    """Run all steps with one graph through all of them.

    Args:
        run: What the forward pass left.
        inputs: What to run the steps on, in place of leaves with the values of the run's inputs.

    Returns:
        The states, x_T first, and the tensors that gradients can be taken for.
    """
    run.surroundings.rng.set(run.surroundings.random[0])
    x_T, step = run.x_T.entering(run.first_pass.wanted[0]), run.step
    if inputs is not None:
        count = len(run.inputs.of_x_T)
        given = dict(zip(run.inputs.of_x_T, inputs[:count], strict=True))
        leaves = tuple(given.get(place, leaf) for place, leaf in enumerate(x_T.leaves))
        x_T = x_T._replace(leaves=leaves)
        step = step.replaced(dict(zip(run.inputs.of_steps, inputs[count:], strict=True)))
    states = [x_T]
    for i in range(run.plan.num_steps):
        with torch.set_grad_enabled(run.options.passes(i)):
            states.append(step(i, states[-1]))
    own = [x_T.leaves[place] for place in run.inputs.of_x_T]
    return states, [*own, *(step.shared.inside[at] for at in run.inputs.of_steps)]
