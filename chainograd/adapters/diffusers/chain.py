"""The chain that `diffusers_chain` returns, which is called with conditions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from chainograd.adapters.diffusers.steps import SamplingStep
from chainograd.chain import CheckpointedChain
from chainograd.plans.costs import StepCost
from chainograd.plans.plan import Plan
from chainograd.preflight.findings import Findings
from chainograd.report.steps import Report


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
        """Number of network calls in a loop; the two halves of a guided call count as one."""
        return self.step.calls

    @property
    def init_noise_sigma(self) -> float:
        """Factor of standard normal noise before the first step."""
        return float(getattr(self.step.scheduler.original, "init_noise_sigma", 1.0))

    @property
    def plan(self) -> Plan:
        """Plan of the inner chain; with ``guidance="in turn"`` it has two steps for each call."""
        return self.chain.plan

    def __call__(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> Tensor:
        """Run the loop.

        Args:
            x: The noise that a pipeline's loop starts from: standard normal noise times
                `init_noise_sigma`, ``[N, …]``.
            cond: Conditioning of the model: a tensor, or a dict of keyword arguments. Tensors get
                gradients.
            uncond: Conditioning of the unconditional prediction of classifier-free guidance.
            guidance_scale: w for this call, instead of the chain's own.

        Returns:
            The sample, differentiable.

        Raises:
            ValueError: If only one of ``uncond`` and a guidance scale is given.
        """
        return self.chain(*self._arguments(x, cond, uncond, guidance_scale))[0]

    def trajectory(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> list[Tensor]:
        """Return the samples before the first call and after every call, all differentiable."""
        states = self.chain.trajectory(*self._arguments(x, cond, uncond, guidance_scale))
        return [state[0] for state in states[:: self._halves]]

    def measure(
        self, x: Tensor, *, cond: Any = None, uncond: Any = None, guidance_scale: Any = None
    ) -> tuple[StepCost, ...]:
        """Measure the cost of each step of the inner chain; see `CheckpointedChain.measure`."""
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
        """Check a few calls for common mistakes; see `CheckpointedChain.check`."""
        arguments = self._arguments(x, cond, uncond, guidance_scale)
        of_carry = None if loss is None else lambda carry: loss(carry[0])
        return self.chain.check(*arguments, loss=of_carry)

    def report(self) -> Report:
        """Report time and memory of each step of the last run; see `CheckpointedChain.report`."""
        return self.chain.report()

    def _arguments(self, x: Tensor, cond: Any, uncond: Any, w: Any) -> tuple[Any, ...]:
        if not x.is_floating_point():
            raise ValueError(f"`x` must be a floating tensor, got {x.dtype}.")
        self._check_guidance(uncond, self.step.guidance_scale if w is None else w)
        return (x, {}), cond, uncond, w

    def _check_guidance(self, uncond: Any, scale: Any) -> None:
        if (uncond is None) != (scale is None):
            missing = "`uncond`" if uncond is None else "`guidance_scale`"
            raise ValueError(
                f"Classifier-free guidance needs `uncond` and `guidance_scale`, but {missing} is "
                "missing. Pass both or neither."
            )
        if isinstance(scale, Tensor) and scale.dim() and scale.shape != (self.num_steps,):
            raise ValueError(
                f"`guidance_scale` must be one number, or {self.num_steps} numbers, one for each "
                f"network call, got shape {tuple(scale.shape)}."
            )
        if self._halves == 2 and uncond is None:
            raise ValueError(
                '`guidance="in turn"` needs `uncond` and `guidance_scale`, but `uncond` is None. '
                "Without guidance, leave `guidance` out."
            )
