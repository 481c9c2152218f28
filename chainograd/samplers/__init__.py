"""Samplers as pure steps, and their noise, noise schedules and grids.

A sampler of this package is a step that a chain can run again:

1. ``step(x, i, *args, **kwargs)`` returns the next state: a tensor, or a pytree of tensors, with
   the structure and shapes of ``x``.
2. The result depends only on ``x``, ``i`` and the arguments. Memory of earlier steps is part of the
   state (`MultistepState`). Noise is a function of the index (`SeededNoise`), or comes from a
   random stream that the chain replays. A call never changes an attribute of the step.
3. A sampler is an ``nn.Module`` that holds its network, so that the chain finds the parameters.
4. It does not turn gradients on or off, and does not change its inputs in place.
5. ``num_steps`` is the length of its chain: ``CheckpointedChain(step, step.num_steps)``. The grid
   is checked once, when the sampler is built.

The formula of a sampler stands in its docstring, and its code uses the letters of the formula. To
add a sampler, start from a copy of ``ddpm.py``.
"""

from chainograd.samplers.ddim import DDIM, ddim_sigma, ddim_update
from chainograd.samplers.ddpm import DDPM
from chainograd.samplers.dpm_solver import DPMSolver2M, MultistepState
from chainograd.samplers.edm import EDMEuler, EDMHeun
from chainograd.samplers.flow import FlowEuler, FlowHeun, flow_times
from chainograd.samplers.karras import Churn, karras_sigmas
from chainograd.samplers.noise import SeededNoise
from chainograd.samplers.schedule import NoiseSchedule, time_grid

__all__ = [
    "DDIM",
    "DDPM",
    "Churn",
    "DPMSolver2M",
    "EDMEuler",
    "EDMHeun",
    "FlowEuler",
    "FlowHeun",
    "MultistepState",
    "NoiseSchedule",
    "SeededNoise",
    "ddim_sigma",
    "ddim_update",
    "flow_times",
    "karras_sigmas",
    "time_grid",
]
