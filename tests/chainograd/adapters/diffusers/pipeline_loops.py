"""The loops of diffusers' pipelines, written out: what a chain is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Net = Callable[[Tensor, Any, Tensor], Tensor]


def ordinary(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for t in s.timesteps:
        x_in = s.scale_model_input(x, t) if hasattr(s, "scale_model_input") else x
        x = s.step(net(x_in, t, cond), t, x, **options).prev_sample
    return x


def scm(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for t in s.timesteps[:-1]:
        x = s.step(net(x, t, cond), t, x, **options).prev_sample
    return x


def wuerstchen(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for t in s.timesteps[:-1]:
        t = t.expand(len(x))
        x = s.step(model_output=net(x, t, cond), timestep=t, sample=x, **options).prev_sample
    return x


def unclip(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for i, t in enumerate(s.timesteps):
        following = None if i + 1 == len(s.timesteps) else s.timesteps[i + 1]
        x = s.step(net(x, t, cond), t, x, prev_timestep=following, **options).prev_sample
    return x


def cogvideox_dpm(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    old = None
    for i, t in enumerate(s.timesteps):
        back = s.timesteps[i - 1] if i > 0 else None
        x, old = s.step(net(x, t, cond), old, t, back, x, return_dict=False, **options)
    return x


def helios_dmd(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for i, t in enumerate(s.timesteps):
        x = s.step(net(x, t, cond), t, x, cur_sampling_step=i, **options).prev_sample
    return x


def repaint(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    last = s.timesteps[0] + 1
    for t in s.timesteps:
        if t < last:
            x = s.step(net(x, t, cond), t, x, **options).prev_sample
        else:
            x = s.undo_step(x, last)
        last = t
    return x


def sde_ve(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    mean = x
    for i, t in enumerate(s.timesteps):
        sigma = s.sigmas[i] * torch.ones(len(x))
        for _ in range(s.config.correct_steps):
            x = s.step_correct(net(x, sigma, cond), x).prev_sample
        done = s.step_pred(net(x, sigma, cond), t, x)
        x, mean = done.prev_sample, done.prev_sample_mean
    return mean


def sde_vp(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    mean = x
    for t in s.timesteps:
        t = t * torch.ones(len(x))
        x, mean = s.step_pred(net(x, t * (s.config.num_train_timesteps - 1), cond), x, t)
    return mean


def karras_ve(s: Any, net: Net, x: Tensor, cond: Tensor, options: dict[str, Any]) -> Tensor:
    for t in s.timesteps:
        sigma = s.schedule[t]
        sigma_prev = s.schedule[t - 1] if t > 0 else 0
        x_hat, sigma_hat = s.add_noise_to_input(x, sigma)
        output = (sigma_hat / 2) * net((x_hat + 1) / 2, sigma_hat / 2, cond)
        done = s.step(output, sigma_hat, sigma_prev, x_hat)
        x = done.prev_sample
        if sigma_prev != 0:
            output = (sigma_prev / 2) * net((x + 1) / 2, sigma_prev / 2, cond)
            x = s.step_correct(output, sigma_hat, sigma_prev, x_hat, x, done.derivative).prev_sample
    return x


LOOPS: dict[str, Callable[..., Tensor]] = {
    "SCMScheduler": scm,
    "DDPMWuerstchenScheduler": wuerstchen,
    "UnCLIPScheduler": unclip,
    "CogVideoXDPMScheduler": cogvideox_dpm,
    "HeliosDMDScheduler": helios_dmd,
    "RePaintScheduler": repaint,
    "ScoreSdeVeScheduler": sde_ve,
    "ScoreSdeVpScheduler": sde_vp,
    "KarrasVeScheduler": karras_ve,
}
