"""Conditions, a scheduler, and the loop of a pipeline with guidance."""

import diffusers
import torch

SHAPE = (2, 3, 4, 4)


def conditions():
    g = torch.Generator().manual_seed(4)
    return [
        torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=g).requires_grad_() for _ in range(2)
    ]


def solver(N=5):
    """Return a scheduler with a history, ready to run."""
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(N)
    return scheduler


def guided_loop(net, x, cond, uncond, w, scheduler=None):
    """Run a pipeline's loop with classifier-free guidance."""
    s = scheduler or solver()
    for i, t in enumerate(s.timesteps):
        both = net(torch.cat([x, x]), t, torch.cat([uncond, cond]))
        first, second = both.chunk(2)
        x = s.step(first + (w[i] if torch.is_tensor(w) else w) * (second - first), t, x).prev_sample
    return x


def gradients(x, wanted):
    return torch.autograd.grad((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum(), wanted)
