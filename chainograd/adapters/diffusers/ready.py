"""A scheduler and its options made ready for a chain's first step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Generator, Tensor, nn


def set_times(scheduler: Any, num_steps: int | None, device: torch.device) -> None:
    """Set the scheduler's times, or check that they are set and that no run has begun.

    Raises:
        ValueError: If there are no times, or the scheduler is in the middle of a run.
    """
    if num_steps is not None:
        scheduler.set_timesteps(num_steps, device=device)
        if hasattr(scheduler, "set_sigmas"):
            scheduler.set_sigmas(num_steps)
        return
    name = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", 0) is None or scheduler.timesteps is None:
        raise ValueError(
            f"`scheduler` {name} has no times yet. To set them, pass `num_steps`, or call its "
            "`set_timesteps`."
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


def accepted_options(
    scheduler: Any, options: dict[str, Any], generator: Generator | list[Generator] | None
) -> dict[str, Any]:
    """Return the options of a scheduler's step, with the generator.

    Raises:
        ValueError: If the step does not take an option.
    """
    method = "step_pred" if hasattr(scheduler, "step_pred") else "step"
    names = inspect.signature(getattr(type(scheduler), method)).parameters
    if hasattr(scheduler, "add_noise_to_input"):
        names = {**names, "generator": None}
    if generator is not None:
        options["generator"] = generator
    for name in options:
        if name not in names:
            where, way_out = (
                ("generator", "Seed the global stream instead") if name == "generator"
                else (f"step_options[{name!r}]", f"It takes {', '.join(list(names)[1:])}")
            )  # fmt: skip
            raise ValueError(
                f"`{where}`: {type(scheduler).__name__}.{method} takes no `{name}`. {way_out}."
            )
    return options


def listed_generators(generator: Generator | list[Generator] | None) -> list[Generator]:
    """Return the generators as a list."""
    if generator is None:
        return []
    return [generator] if isinstance(generator, Generator) else list(generator)


def device_of(model: Any) -> torch.device:
    """Return the device of a module's first parameter, or the CPU."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))
