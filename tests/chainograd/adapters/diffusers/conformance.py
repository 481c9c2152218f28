"""Every scheduler of diffusers: the chain against a pipeline's loop over ``scheduler.step``.

``python -m tests.chainograd.adapters.diffusers.conformance`` prints the table that the
documentation shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chainograd.adapters import diffusers_chain
from chainograd.adapters.diffusers.protocols import DISCRETE
from tests.chainograd.adapters.diffusers.pipeline_loops import LOOPS, ordinary
from tests.chainograd.adapters.diffusers.scheduler_cases import Case, cases

# Relative, of gradients in float64: sums in another order, were there any.
TOLERANCE = 1e-12


class Net(nn.Module):
    """A network of every diffusers shape: channels are the second dimension, or the last."""

    def __init__(self, shape: tuple[int, ...], axis: int, widened: int) -> None:
        super().__init__()
        C = shape[axis]
        self.axis = axis
        self.into = nn.Parameter(torch.randn(C, 8, dtype=torch.float64) / C**0.5)
        self.out = nn.Parameter(torch.randn(8, widened * C, dtype=torch.float64) / 8**0.5)

    def forward(self, x: Tensor, t: Any, cond: Tensor) -> Tensor:
        """Return a prediction that depends on everything."""
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.dim() - 1))
        h = x.movedim(self.axis, -1).double() @ self.into
        h = torch.tanh(h + torch.sin(t / 100) + cond)
        return (h @ self.out).movedim(-1, self.axis)


class Row(NamedTuple):
    """What was found: the largest difference of each gradient, relative to its largest entry."""

    case: Case
    calls: int
    same_loss: bool
    x_T: float
    cond: float
    parameters: float

    @property
    def exact(self) -> bool:
        """Whether the loss is the same to the bit, and the gradients are to rounding."""
        return self.same_loss and max(self.x_T, self.cond, self.parameters) < TOLERANCE


@dataclass(frozen=True)
class Problem:
    """A case with a network, a condition and noise."""

    case: Case
    net: Net
    cond: Tensor
    x_T: Tensor
    options: dict[str, Any]

    @classmethod
    def of(cls, case: Case) -> Problem:
        """Return the problem that a case is run on."""
        torch.manual_seed(0)
        net = Net(case.shape, case.axis, case.widened)
        cond = torch.randn(8, dtype=torch.float64, requires_grad=True)
        scheduler, options = case.scheduler(), dict(case.options)
        sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
        x_T = (torch.randn(case.shape, dtype=torch.float64) * sigma).requires_grad_()
        if case.name == "HeliosDMDScheduler":
            noise = torch.randn(case.shape, dtype=torch.float64)
            options.update(all_timesteps=scheduler.timesteps, dmd_noisy_tensor=noise)
        return cls(case, net, cond, x_T, options)

    def outcome(self, run: Callable[[], Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the loss on what ``run`` samples, and its gradients."""
        torch.manual_seed(1)
        x = run()
        weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
        loss = (x * weights + x.square()).sum()
        wanted = (self.x_T, self.cond, *self.net.parameters())
        return loss.detach(), torch.autograd.grad(loss, wanted)

    def plain(self) -> Tensor:
        """Run the pipeline's loop."""
        loop = LOOPS.get(self.case.name, ordinary)
        return loop(self.case.scheduler(), self.net, self.x_T, self.cond, self.options)


def compare(case: Case, **chain_options: Any) -> Row:
    """Run a case both ways.

    Raises:
        ValueError: If the chain refuses the scheduler.
    """
    problem = Problem.of(case)
    chain = diffusers_chain(
        problem.net, case.scheduler(), step_options=problem.options, **chain_options
    )
    loss, grads = problem.outcome(problem.plain)
    chain_loss, chain_grads = problem.outcome(lambda: chain(problem.x_T, cond=problem.cond))
    off = differences(grads, chain_grads)
    if not all(float(g.abs().max()) > 0 for g in grads):
        raise AssertionError(f"{case}: a gradient of the loop is zero, which shows nothing")
    return Row(case, chain.num_steps, torch.equal(loss, chain_loss), off[0], off[1], max(off[2:]))


def differences(grads: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """Return the largest difference of each gradient, relative to its largest entry."""
    pairs = zip(grads, others, strict=True)
    return [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]


def checkpointed(case: Case) -> str:
    """Return what comes of `torch.utils.checkpoint` around each step of an ordinary loop."""
    problem, s = Problem.of(case), case.scheduler()

    def step(x: Tensor, t: Tensor) -> Tensor:
        x_in = s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else x
        return s.step(problem.net(x_in, t, problem.cond), t, x, **problem.options).prev_sample

    def run() -> Tensor:
        x = problem.x_T
        for t in s.timesteps:
            x = checkpoint(step, x, t, use_reentrant=False)
        return x

    _, grads = problem.outcome(problem.plain)
    try:
        off = max(differences(grads, problem.outcome(run)[1]))
    except Exception as error:
        return type(error).__name__
    return f"{off:.0%} off" if off > TOLERANCE else "exact"


def table() -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"diffusers {diffusers.__version__}, float64, a CPU.",
        "",
        "| scheduler | options | calls | loss | x_T | conditioning | parameters | checkpoint |",
        "|---|---|---:|---|---:|---:|---:|---|",
    ]
    for case in cases():
        label = case.label or "defaults"
        if case.name in DISCRETE:
            lines.append(f"| {case.name} | | | refused: discrete tokens | | | | |")
            continue
        row = compare(case)
        loss = "the same bits" if row.same_loss else "DIFFERENT"
        figures = " | ".join(f"{d:.0e}" if d else "0" for d in row[3:])
        peer = checkpointed(case) if case.name not in LOOPS else ""
        lines.append(f"| {case.name} | {label} | {row.calls} | {loss} | {figures} | {peer} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
