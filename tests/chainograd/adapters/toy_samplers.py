"""Samplers written like k-diffusion's, and a denoiser."""

import math
from itertools import pairwise

import torch

SIGMAS = torch.tensor([9.0, 5.0, 2.5, 1.0, 0.4, 0.1, 0.0])
M = len(SIGMAS) - 1
X_T = 9 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        )

    def forward(self, x, sigma, c=0.0):
        return 2 * self.net(x / (1 + sigma[:, None])) + c


def slope(model, x, sigma, extra_args):
    return (x - model(x, sigma.expand(len(x)), **(extra_args or {}))) / sigma


def split_noise(sigma, following, eta):
    """Return the level to go down to and the noise to add, so that the variances add up."""
    up = eta * following * (1 - (following / sigma) ** 2).clamp(min=0).sqrt()
    return (following**2 - up**2).sqrt(), up


@torch.no_grad()
def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None, s_churn=0.0):
    steps = len(sigmas) - 1
    for sigma, following in pairwise(sigmas):
        gamma = min(s_churn / steps, math.sqrt(2) - 1)
        z = torch.randn_like(x)  # drawn with no churn, too
        level = (1 + gamma) * sigma
        if gamma:
            x = x + (level**2 - sigma**2).sqrt() * z
        d = slope(model, x, level, extra_args)
        ahead = x + (following - level) * d
        if following > 0:
            d = (d + slope(model, ahead, following, extra_args)) / 2
            ahead = x + (following - level) * d
        x = ahead
    return x


@torch.no_grad()
def sample_euler_ancestral(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    eta=1.0, s_noise=1.0, noise_sampler=None,
):  # fmt: skip
    for sigma, following in pairwise(sigmas):
        down, up = split_noise(sigma, following, eta)
        x = x + (down - sigma) * slope(model, x, sigma, extra_args)
        if following > 0:
            x = x + s_noise * up * noise_sampler(sigma, following)
    return x


@torch.no_grad()
def sample_dpmpp_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, noise_sampler=None
):
    """Adds noise twice a step, the first time half-way."""
    for sigma, following in pairwise(sigmas):
        d = slope(model, x, sigma, extra_args)
        if following == 0:
            x = x - sigma * d
            continue
        middle = (sigma * following).sqrt()
        down, up = split_noise(sigma, middle, eta)
        half_way = x + (down - sigma) * d + up * noise_sampler(sigma, middle)
        down, up = split_noise(sigma, following, eta)
        d = slope(model, half_way, middle, extra_args)
        x = x + (down - sigma) * d + up * noise_sampler(sigma, following)
    return x


@torch.no_grad()
def with_a_memory(model, x, sigmas, extra_args=None, callback=None, disable=None):
    previous = None
    for sigma, following in pairwise(sigmas):
        d = slope(model, x, sigma, extra_args)
        x = x + (following - sigma) * (d if previous is None else 1.5 * d - 0.5 * previous)
        previous = d
    return x


def deterministic(sigma, following):
    """Noise that is a function of the two levels."""
    key = round(1e4 * float(sigma)) + round(1e8 * float(following))
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(key))


SAMPLERS = {
    "heun": (sample_heun, {}),
    "churned": (sample_heun, {"s_churn": 1.5}),
    "ancestral": (sample_euler_ancestral, {"noise_sampler": deterministic}),
    "sde": (sample_dpmpp_sde, {"noise_sampler": deterministic, "eta": 0.8}),
}


def sample_and_gradients(run, model):
    """Run from one seed, as heun draws; return the sample and the gradients of a loss on it."""
    x_T, c = X_T.clone().requires_grad_(), torch.ones(3, requires_grad=True)
    torch.manual_seed(5)
    x_0 = run(x_T, c)
    return x_0, *torch.autograd.grad(x_0.square().sum(), [x_T, c, *model.parameters()])
