"""Protocols of schedulers with a predictor and a corrector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chainograd.adapters.diffusers.calls import Call, Protocol, every_time
from chainograd.adapters.networks import undecorated

# Score SDE, variance exploding: calls of the corrector, then one call of the predictor


def _corrections_and_predictions(scheduler: Any) -> int:
    return len(scheduler.timesteps) * (scheduler.config.correct_steps + 1)


def _at_a_sigma(call: Call) -> tuple[Tensor, Any]:
    i = call.j // (call.scheduler.config.correct_steps + 1)
    return call.x, call.scheduler.sigmas[i].to(call.x.device) * torch.ones(
        len(call.x), device=call.x.device
    )


def _corrected_or_predicted(call: Call, output: Tensor) -> Tensor:
    i, k = divmod(call.j, call.scheduler.config.correct_steps + 1)
    if k < call.scheduler.config.correct_steps:
        return call.of("step_correct", output, call.x)[0]
    t = call.scheduler.timesteps[i]
    x, mean = call.of("step_pred", output, t, call.x)
    return mean if i == len(call.scheduler.timesteps) - 1 else x  # the result has no noise


# Score SDE, variance preserving


def _at_a_scaled_time(call: Call) -> tuple[Tensor, Any]:
    t = call.t * torch.ones(len(call.x), device=call.x.device)
    return call.x, t * (call.scheduler.config.num_train_timesteps - 1)


def _predicted(call: Call, output: Tensor) -> Tensor:
    t = call.t * torch.ones(len(call.x), device=call.x.device)
    step = undecorated(call.scheduler.step_pred)
    x, mean = step(output, call.x, t, **call.options)
    return mean if call.j == len(call.scheduler.timesteps) - 1 else x


# Karras VE: noise is added, then a call of the predictor and, except at the end, of the corrector


def _predictions_and_corrections(scheduler: Any) -> int:
    return 2 * len(scheduler.timesteps) - 1


def _karras_sigmas(call: Call) -> tuple[Any, Any]:
    t = call.scheduler.timesteps[call.j // 2]
    schedule = call.scheduler.schedule
    return schedule[t], schedule[t - 1] if t > 0 else torch.zeros_like(schedule[t])


def _with_added_noise(call: Call) -> tuple[Tensor, Any]:
    sigma, sigma_prev = _karras_sigmas(call)
    if call.j % 2:
        return (call.x + 1) / 2, sigma_prev / 2
    add = undecorated(call.scheduler.add_noise_to_input)
    x_hat, sigma_hat = add(call.x, sigma, generator=call.options.get("generator"))
    call.aside.update(x_hat=x_hat, sigma_hat=sigma_hat)
    return (x_hat + 1) / 2, sigma_hat / 2


def _karras_stepped(call: Call, output: Tensor) -> Tensor:
    sigma_prev, aside = _karras_sigmas(call)[1], call.aside
    options = {k: v for k, v in call.options.items() if k != "generator"}
    call = call._replace(options=options)
    x_hat, sigma_hat = aside["x_hat"], aside["sigma_hat"]
    if call.j % 2:
        output = (sigma_prev / 2) * output
        return call.of(
            "step_correct", output, sigma_hat, sigma_prev, x_hat, call.x, aside.pop("derivative")
        )[0]
    output = (sigma_hat / 2) * output
    x, derivative = call.of("step", output, sigma_hat, sigma_prev, x_hat)[:2]
    aside["derivative"] = derivative
    return x


SCORE_SDE_VE = Protocol(_corrections_and_predictions, _at_a_sigma, _corrected_or_predicted)
SCORE_SDE_VP = Protocol(every_time, _at_a_scaled_time, _predicted)
KARRAS_VE = Protocol(_predictions_and_corrections, _with_added_noise, _karras_stepped)
