"""How a pipeline's loop uses each kind of scheduler, cut into calls of the network.

A call is what happens around one evaluation of the network:

    x_in, t = enter(scheduler, x, j)            what the network is asked
    x'      = leave(scheduler, output, x, j)    what the scheduler makes of its answer

Most schedulers are used in the ordinary way. Those with a predictor and a corrector make two calls
a step, and a few need more than the ordinary arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd.adapters.networks import undecorated


class Call(NamedTuple):
    """One call.

    Attributes:
        scheduler: A copy that remembers what came before; it may change.
        x: The sample.
        j: The call's index.
        aside: What the loop itself carries from call to call, beside the scheduler.
        options: Further arguments of the scheduler's step.
    """

    scheduler: Any
    x: Tensor
    j: int
    aside: dict[str, Any]
    options: Mapping[str, Any]

    @property
    def t(self) -> Any:
        """The scheduler's time of this call."""
        return self.scheduler.timesteps[self.j]

    def of(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of the scheduler with gradients on, and return its results."""
        method = undecorated(getattr(self.scheduler, name))
        return method(*args, **{**self.options, **options}, return_dict=False)


class Protocol(NamedTuple):
    """A way to use a scheduler.

    Attributes:
        calls: How many calls a loop makes.
        enter: Returns what the network is asked, or None if it is not.
        leave: Returns the next sample.
    """

    calls: Callable[[Any], int]
    enter: Callable[[Call], tuple[Tensor, Any] | None]
    leave: Callable[[Call, Any], Tensor]


# The ordinary way


def _every_time(scheduler: Any) -> int:
    return len(scheduler.timesteps)


def _scaled(call: Call) -> tuple[Tensor, Any]:
    scale = getattr(call.scheduler, "scale_model_input", None)
    return (call.x if scale is None else scale(call.x, call.t)), call.t


def _stepped(call: Call, output: Tensor) -> Tensor:
    return call.of("step", output, call.t, call.x)[0]


ORDINARY = Protocol(_every_time, _scaled, _stepped)


# Ordinary but for an argument


def _last_is_the_end(scheduler: Any) -> int:
    return len(scheduler.timesteps) - 1


def _with_the_time_repeated(call: Call, output: Tensor) -> Tensor:
    return call.of("step", output, call.t.expand(len(call.x)), call.x)[0]


def _with_the_next_time(call: Call, output: Tensor) -> Tensor:
    times = call.scheduler.timesteps
    following = times[call.j + 1] if call.j + 1 < len(times) else None
    return call.of("step", output, call.t, call.x, prev_timestep=following)[0]


def _with_the_last_x_0(call: Call, output: Tensor) -> Tensor:
    back = call.scheduler.timesteps[call.j - 1] if call.j else None
    x, call.aside["x_0"] = call.of(
        "step", output, call.aside.get("x_0"), call.t, back, call.x
    )  # fmt: skip
    return x


def _with_the_index(call: Call, output: Tensor) -> Tensor:
    return call.of("step", output, call.t, call.x, cur_sampling_step=call.j)[0]


# RePaint goes back up now and then, without asking the network


def _unless_back_up(call: Call) -> tuple[Tensor, Any] | None:
    return None if _goes_back_up(call) else _scaled(call)


def _stepped_or_undone(call: Call, output: Any) -> Tensor:
    if not _goes_back_up(call):
        return _stepped(call, output)
    last = call.scheduler.timesteps[call.j - 1]
    return call.scheduler.undo_step(call.x, last, call.options.get("generator"))


def _goes_back_up(call: Call) -> bool:
    return bool(call.j and call.t >= call.scheduler.timesteps[call.j - 1])


# Score SDE, variance exploding: corrector calls, then one of the predictor


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


# Karras VE: noise is added, then a predictor's call and a corrector's (not at the end)


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


PROTOCOLS = {
    "SCMScheduler": Protocol(_last_is_the_end, _scaled, _stepped),
    "DDPMWuerstchenScheduler": Protocol(_last_is_the_end, _scaled, _with_the_time_repeated),
    "UnCLIPScheduler": Protocol(_every_time, _scaled, _with_the_next_time),
    "CogVideoXDPMScheduler": Protocol(_every_time, _scaled, _with_the_last_x_0),
    "HeliosDMDScheduler": Protocol(_every_time, _scaled, _with_the_index),
    "RePaintScheduler": Protocol(_every_time, _unless_back_up, _stepped_or_undone),
    "ScoreSdeVeScheduler": Protocol(
        _corrections_and_predictions, _at_a_sigma, _corrected_or_predicted
    ),
    "ScoreSdeVpScheduler": Protocol(_every_time, _at_a_scaled_time, _predicted),
    "KarrasVeScheduler": Protocol(_predictions_and_corrections, _with_added_noise, _karras_stepped),
}

# Their states are tokens, of which there is no gradient.
DISCRETE = (
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "VQDiffusionScheduler",
)


def protocol_of(scheduler: Any) -> Protocol:
    """Return how a scheduler is used.

    Raises:
        ValueError: If its states are discrete tokens.
    """
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    for name in names:
        if name in DISCRETE:
            raise ValueError(
                f"`scheduler` {type(scheduler).__name__} samples discrete tokens: there is no "
                "gradient with respect to a token. Use a scheduler with continuous states, or a "
                "score-function estimator."
            )
        if name in PROTOCOLS:
            return PROTOCOLS[name]
    return ORDINARY
