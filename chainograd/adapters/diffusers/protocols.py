"""The protocol of each diffusers scheduler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainograd.adapters.diffusers.calls import Call, Protocol, every_time
from chainograd.adapters.diffusers.correctors import KARRAS_VE, SCORE_SDE_VE, SCORE_SDE_VP

# The ordinary protocol


def _scaled(call: Call) -> tuple[Tensor, Any]:
    scale = getattr(call.scheduler, "scale_model_input", None)
    return (call.x if scale is None else scale(call.x, call.t)), call.t


def _stepped(call: Call, output: Tensor) -> Tensor:
    return call.of("step", output, call.t, call.x)[0]


ORDINARY = Protocol(every_time, _scaled, _stepped)


# Ordinary except for one argument of the step


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


# RePaint, which sometimes goes back to a higher noise level without evaluating the network


def _unless_back_up(call: Call) -> tuple[Tensor, Any] | None:
    return None if _goes_back_up(call) else _scaled(call)


def _stepped_or_undone(call: Call, output: Any) -> Tensor:
    if not _goes_back_up(call):
        return _stepped(call, output)
    last = call.scheduler.timesteps[call.j - 1]
    return call.scheduler.undo_step(call.x, last, call.options.get("generator"))


def _goes_back_up(call: Call) -> bool:
    return bool(call.j and call.t >= call.scheduler.timesteps[call.j - 1])


PROTOCOLS = {
    "SCMScheduler": Protocol(_last_is_the_end, _scaled, _stepped),
    "DDPMWuerstchenScheduler": Protocol(_last_is_the_end, _scaled, _with_the_time_repeated),
    "UnCLIPScheduler": Protocol(every_time, _scaled, _with_the_next_time),
    "CogVideoXDPMScheduler": Protocol(every_time, _scaled, _with_the_last_x_0),
    "HeliosDMDScheduler": Protocol(every_time, _scaled, _with_the_index),
    "RePaintScheduler": Protocol(every_time, _unless_back_up, _stepped_or_undone),
    "ScoreSdeVeScheduler": SCORE_SDE_VE,
    "ScoreSdeVpScheduler": SCORE_SDE_VP,
    "KarrasVeScheduler": KARRAS_VE,
}

# The states of these schedulers are tokens, which have no gradient.
DISCRETE = (
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "VQDiffusionScheduler",
)


def protocol_of(scheduler: Any) -> Protocol:
    """Return the protocol of a scheduler.

    Raises:
        ValueError: If the scheduler's states are discrete tokens.
    """
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    for name in names:
        if name in DISCRETE:
            raise ValueError(
                f"`scheduler` {type(scheduler).__name__} samples discrete tokens, and a token has "
                "no gradient. Use a scheduler with continuous states, or a score-function "
                "estimator."
            )
        if name in PROTOCOLS:
            return PROTOCOLS[name]
    return ORDINARY
