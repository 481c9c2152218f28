"""`diffusers_chain`: a diffusers model and scheduler as a chain."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from chainograd.adapters.diffusers.protocols import protocol_of
from chainograd.adapters.diffusers.schedulers import PureScheduler
from chainograd.adapters.diffusers.steps import SamplingHalfStep, SamplingStep
from chainograd.chain import CheckpointedChain
from chainograd.plans.plan import Plan, StepCost
from chainograd.preflight.findings import Findings
from chainograd.report.steps import Report

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

    Each step is what a pipeline does at one time:

        output = model(scheduler.scale_model_input(x, t), t, …)
        x      = scheduler.step(output, t, x)

    What the scheduler remembers from step to step is carried in the chain's state, so the
    gradient through the history of multistep solvers is there, and steps run again exactly. The
    scheduler itself is copied and left as it is.

    Args:
        model: A diffusers model (UNet or transformer), or any ``model(x, t, …)``; t is ``[N]``. It
            may return twice the channels of x, a variance behind the prediction: that half is left
            out unless the scheduler asks for it.
        scheduler: Any diffusers scheduler of continuous states. Its config says what the model
            predicts (``prediction_type``).
        num_steps: For ``scheduler.set_timesteps``. None takes the times that are set already.
        guidance_scale: w of classifier-free guidance, used where the chain is called with
            ``uncond``. A tensor (one number, or one for each network call) can get a gradient.
        guidance: ``"together"`` makes both predictions in one batch of 2N. ``"in turn"`` makes one
            after the other, each as a step of the chain: half the memory of a graph, as many
            network evaluations.
        generator: Handed to the scheduler's steps. Without one they draw from the global stream.
        step_options: Further arguments of ``scheduler.step``, such as ``{"eta": 0.5}``.
        grad_steps: As for `CheckpointedChain`, counted in network calls.
        grad_transform: ``f(j, g) -> g`` with the cotangent of the sample that enters call j.
        options: Handed to `CheckpointedChain`: ``plan``, ``frozen``, ``store``, ….

    Returns:
        The chain: call it with the noise that a pipeline starts from.

    Raises:
        ValueError: If the scheduler samples discrete tokens, is in the middle of a run, or does
            not take an option.

    Example:
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
    scheduler = PureScheduler(scheduler).remembering({})  # a copy of our own
    _set_times(scheduler, num_steps, _device(model))
    step_options = _accepted(scheduler, dict(step_options or {}), generator)
    kind = SamplingStep if guidance == "together" else SamplingHalfStep
    step = kind(model, scheduler, protocol, guidance_scale, step_options)
    halves = 1 if guidance == "together" else 2
    chain = CheckpointedChain(
        step,
        step.calls * halves,
        generators=_listed(generator),
        grad_steps=_in_halves(grad_steps, halves),
        grad_transform=None if grad_transform is None else _of_sample(grad_transform, halves),
        **options,
    )
    return DiffusersChain(step, chain, halves)


class DiffusersChain:
    """What `diffusers_chain` returns.

    Attributes:
        step: The step of the inner chain.
        chain: The inner chain, whose state is the sample and what the scheduler remembers.
    """

    def __init__(self, step: SamplingStep, chain: CheckpointedChain, halves: int) -> None:
        self.step = step
        self.chain = chain
        self._halves = halves

    @property
    def num_steps(self) -> int:
        """Calls of the network in a loop, both halves of a guided one counted as one."""
        return self.step.calls

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied by before the first step."""
        return float(getattr(self.step.scheduler.original, "init_noise_sigma", 1.0))

    @property
    def plan(self) -> Plan:
        """The inner chain's plan; with ``guidance="in turn"`` it has two steps for each call."""
        return self.chain.plan

    def __call__(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> Tensor:
        """Run the loop.

        Args:
            x: The noise as a pipeline's loop starts from it: standard normal noise times
                `init_noise_sigma`, ``[N, …]``.
            cond: What the model is conditioned on: a tensor, or a dict of keyword arguments.
                Tensors get gradients.
            uncond: The same for the unconditional prediction of classifier-free guidance.
            guidance_scale: w for this call, in place of the chain's own.

        Returns:
            The sample, differentiable.

        Raises:
            ValueError: If guidance is half asked for.
        """
        return self.chain(*self._arguments(x, cond, uncond, guidance_scale))[0]

    def trajectory(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> list[Tensor]:
        """Return the samples before the first call and after every one, all differentiable."""
        states = self.chain.trajectory(*self._arguments(x, cond, uncond, guidance_scale))
        return [state[0] for state in states[:: self._halves]]

    def measure(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> tuple[StepCost, ...]:
        """Measure what each step of the inner chain costs; see `CheckpointedChain.measure`."""
        return self.chain.measure(*self._arguments(x, cond, uncond, guidance_scale))

    def check(
        self,
        x: Tensor,
        *,
        cond: Any = None,
        uncond: Any = None,
        guidance_scale: Any = None,
        loss: Callable[[Tensor], Any] | None = None,
    ) -> Findings:
        """Look at a few calls for what would go wrong; see `CheckpointedChain.check`."""
        arguments = self._arguments(x, cond, uncond, guidance_scale)
        of_carry = None if loss is None else lambda carry: loss(carry[0])
        return self.chain.check(*arguments, loss=of_carry)

    def report(self) -> Report:
        """Return what each step of the last run took; see `CheckpointedChain.report`."""
        return self.chain.report()

    def _arguments(self, x: Tensor, cond: Any, uncond: Any, w: Any) -> tuple[Any, ...]:
        if not x.is_floating_point():
            raise ValueError(f"`x` must be a floating tensor, got {x.dtype}.")
        scale = self.step.guidance_scale if w is None else w
        if (uncond is None) != (scale is None):
            missing = "`uncond`" if uncond is None else "`guidance_scale`"
            raise ValueError(
                f"Classifier-free guidance needs `uncond` and `guidance_scale`; {missing} is "
                "missing. Give both or neither."
            )
        if isinstance(scale, Tensor) and scale.dim() and scale.shape != (self.num_steps,):
            raise ValueError(
                f"`guidance_scale` must be one number or {self.num_steps}, one for each network "
                f"call, got shape {tuple(scale.shape)}."
            )
        if self._halves == 2 and uncond is None:
            raise ValueError(
                '`guidance="in turn"` needs `uncond` and `guidance_scale`. Without guidance leave '
                "`guidance` out."
            )
        return (x, {}), cond, uncond, w


def _set_times(scheduler: Any, num_steps: int | None, device: torch.device) -> None:
    if num_steps is not None:
        scheduler.set_timesteps(num_steps, device=device)
        if hasattr(scheduler, "set_sigmas"):
            scheduler.set_sigmas(num_steps)
        return
    name = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", 0) is None or scheduler.timesteps is None:
        raise ValueError(
            f"`scheduler` {name} has no times yet: pass `num_steps`, or call its `set_timesteps`."
        )
    history = [
        value
        for attribute in ("model_outputs", "ets", "derivatives")
        for value in getattr(scheduler, attribute, None) or []
    ]
    if getattr(scheduler, "_step_index", None) or any(isinstance(t, Tensor) for t in history):
        raise ValueError(
            f"`scheduler` {name} is in the middle of a run. Pass `num_steps`, or call its "
            "`set_timesteps` again."
        )


def _accepted(
    scheduler: Any, options: dict[str, Any], generator: Generator | list[Generator] | None
) -> dict[str, Any]:
    """Return the options of a scheduler's step, the generator among them."""
    method = "step_pred" if hasattr(scheduler, "step_pred") else "step"
    names = inspect.signature(getattr(type(scheduler), method)).parameters
    if hasattr(scheduler, "add_noise_to_input"):
        names = {**names, "generator": None}
    if generator is not None:
        options["generator"] = generator
    for name in options:
        if name not in names:
            way_out = (
                "seed the global stream instead" if name == "generator"
                else f"it takes {', '.join(list(names)[1:])}"
            )  # fmt: skip
            where = "generator" if name == "generator" else f"step_options[{name!r}]"
            raise ValueError(
                f"`{where}`: {type(scheduler).__name__}.{method} takes no `{name}`; {way_out}."
            )
    return options


def _listed(generator: Generator | list[Generator] | None) -> list[Generator]:
    if generator is None:
        return []
    return [generator] if isinstance(generator, Generator) else list(generator)


def _device(model: Any) -> torch.device:
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


def _in_halves(grad_steps: Any, halves: int) -> Any:
    """Return ``grad_steps`` in steps of the inner chain."""
    if halves == 1 or grad_steps is None:
        return grad_steps
    if callable(grad_steps):
        return lambda n: _in_halves(grad_steps(n // halves), halves)
    if isinstance(grad_steps, int):
        return grad_steps * halves
    return {halves * j + k for j in grad_steps for k in range(halves)}


def _of_sample(transform: Callable[[int, Tensor], Tensor], halves: int) -> Callable[..., Any]:
    """Return a transform of the sample's cotangent alone, before whole calls."""

    def transformed(i: int, g: Any) -> Any:
        g_x, rest = g
        if i % halves or g_x is None:
            return g
        return transform(i // halves, g_x), rest

    return transformed
