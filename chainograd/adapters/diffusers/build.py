"""`diffusers_chain`: a model and a scheduler of diffusers as a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from torch import Generator, Tensor

from chainograd.adapters.diffusers.chain import DiffusersChain
from chainograd.adapters.diffusers.in_turn import SamplingHalfStep, in_halves, of_sample
from chainograd.adapters.diffusers.protocols import protocol_of
from chainograd.adapters.diffusers.ready import (
    accepted_options,
    device_of,
    listed_generators,
    set_times,
)
from chainograd.adapters.diffusers.schedulers import PureScheduler
from chainograd.adapters.diffusers.steps import SamplingStep
from chainograd.chain import CheckpointedChain

Guidance = Literal["together", "in turn"]


def diffusers_chain(
    model: Callable[..., Any],
    scheduler: Any,
    num_steps: int | None = None,
    *,
    guidance_scale: float | Tensor | None = None,
    guidance: Guidance = "together",
    generator: Generator | list[Generator] | None = None,
    step_options: Mapping[str, Any] | None = None,
    grad_steps: Any = None,
    grad_transform: Callable[[int, Tensor], Tensor] | None = None,
    **options: Any,
) -> DiffusersChain:
    r"""Return the sampling loop of a diffusers pipeline as a chain with exact gradients.

    Each step is one iteration of the pipeline's loop:

        output = model(scheduler.scale_model_input(x, t), t, …)
        x      = scheduler.step(output, t, x)

    The scheduler's memory of earlier steps is part of the chain's state. So steps run again
    exactly, and the gradient passes through the history of multistep solvers. The scheduler is
    copied and not changed.

    Args:
        model: A diffusers model (UNet or transformer), or any ``model(x, t, …)`` with t ``[N]``. If
            it returns twice the channels of x, the second half is a variance, which is dropped
            unless the scheduler uses it.
        scheduler: Any diffusers scheduler with continuous states. Its config says what the model
            predicts (``prediction_type``).
        num_steps: Argument of ``scheduler.set_timesteps``. None uses the times that are set.
        guidance_scale: w of classifier-free guidance, used if the chain is called with ``uncond``.
            A tensor (one number, or one for each network call) can get a gradient.
        guidance: ``"together"`` makes both predictions in one batch of 2N. ``"in turn"`` makes each
            prediction in its own step of the chain: half the memory of a graph, and as many network
            evaluations.
        generator: Generator of the scheduler's steps; by default they use the global stream.
        step_options: Further arguments of ``scheduler.step``, such as ``{"eta": 0.5}``.
        grad_steps: As for `CheckpointedChain`, counted in network calls.
        grad_transform: ``f(j, g) -> g`` with the cotangent of the sample that enters call j.
        options: Options of `CheckpointedChain`: ``plan``, ``frozen``, ``store``, ….

    Returns:
        The chain. Call it with the noise that a pipeline starts from.

    Raises:
        ValueError: If the scheduler samples discrete tokens, is in the middle of a run, or does
            not take an option.

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler, UNet2DModel
        >>> unet = UNet2DModel(8, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",),
        ...                    up_block_types=("UpBlock2D",)).requires_grad_(False)
        >>> chain = diffusers_chain(unet, DDIMScheduler(), num_steps=5)
        >>> x_T = torch.randn(1, 3, 8, 8, requires_grad=True)
        >>> chain(x_T * chain.init_noise_sigma).square().mean().backward()
        >>> x_T.grad.shape
        torch.Size([1, 3, 8, 8])
    """
    if guidance not in get_args(Guidance):
        raise ValueError(f"`guidance` must be one of {get_args(Guidance)}, got {guidance!r}.")
    protocol = protocol_of(scheduler)
    scheduler = PureScheduler(scheduler).remembering({})  # a copy, whose times are set here
    set_times(scheduler, num_steps, device_of(model))
    step_options = accepted_options(scheduler, dict(step_options or {}), generator)
    kind = SamplingStep if guidance == "together" else SamplingHalfStep
    step = kind(model, scheduler, protocol, guidance_scale, step_options)
    halves = 1 if guidance == "together" else 2
    chain = CheckpointedChain(
        step,
        step.calls * halves,
        generators=listed_generators(generator),
        grad_steps=in_halves(grad_steps, halves),
        grad_transform=None if grad_transform is None else of_sample(grad_transform, halves),
        **options,
    )
    return DiffusersChain(step, chain, halves)
