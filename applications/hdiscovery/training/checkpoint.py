"""The checkpoint of a training: everything that a resumed run needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdiscovery.directions.saved import FORMAT, averaged, load_networks
from hdiscovery.training.optimizers import set_rates
from hdiscovery.training.trainer import Trainer


def state(trainer: Trainer, step: int) -> dict[str, Any]:
    """Return a trainer's state before a step; in rank 0, of all processes.

    It holds no state of random streams: what step i draws depends only on the run's seed, on i and
    on the rank.
    """
    networks, average = trainer.networks, trainer.average
    return {
        "format": FORMAT,
        "step": step,
        "shift_block": networks.shift_block.state_dict(),
        "average": None if average is None else average.state_dict(),
        "R": networks.R.state_dict(),
        "D": networks.D.state_dict(),
        "optimizers": {name: each.state_dict() for name, each in trainer.optimizers.items()},
        "buffers": trainer.recent.state(),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> int:
    """Load what `state` returned; return the next step.

    The learning rates are those of the trainer's config, not those of the checkpoint. Among another
    number of processes, each takes the recent pairs of the rank that is left over by division.

    Raises:
        ValueError: If another version wrote the checkpoint.
    """
    load_networks(trainer.networks, state)
    begin_average(trainer)
    if trainer.average is not None and state["average"] is not None:
        trainer.average.load_state_dict(state["average"])
    for name, each in trainer.optimizers.items():
        each.load_state_dict(state["optimizers"][name])
    set_rates(trainer.optimizers, trainer.config.rates)
    trainer.recent.restore(state["buffers"])
    return state["step"]


def begin_with(trainer: Trainer, state: dict[str, Any]) -> None:
    """Load the networks and optimizers of another run's checkpoint; this run's step is 0.

    The recent pairs are left behind: they were sampled under other settings. The directions are
    multiplied by ``start_scale``. A published run has no discriminator and no optimizers, so these
    begin anew, and so does R if ``state["R"]`` is None. A run without a moving average begins with
    the other run's average, if there is one.
    """
    state = _completed(trainer, state)
    if state["optimizers"] is None:
        trainer.networks.shift_block.load_state_dict(state["shift_block"])
        trainer.networks.R.load_state_dict(state["R"])
        begin_average(trainer)
    else:
        restore(trainer, {**state, "buffers": [[]]})
    blocks: list[Any] = [trainer.networks.shift_block]
    if trainer.average is not None:
        blocks.append(trainer.average.module)
    with torch.no_grad():
        for head in (head for block in blocks for head in block.heads):
            head.mul_(trainer.config.run.start_scale)


def begin_average(trainer: Trainer) -> None:
    """Let the average be the shift block as it is, not as it was drawn."""
    if trainer.average is not None:
        trainer.average.module.load_state_dict(trainer.networks.shift_block.state_dict())


def refuse_not_finite(trainer: Trainer) -> None:
    """Check that every weight and every moment of an optimizer is finite.

    Raises:
        FloatingPointError: If one is not.
    """
    nets = (trainer.networks.shift_block, trainer.networks.R, trainer.networks.D)
    moments = [m for each in trainer.optimizers.values() for own in each.state.values()
               for m in own.values()]  # fmt: skip
    for tensor in (*(p for net in nets for p in net.parameters()), *moments):
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise FloatingPointError("A weight or a moment of Adam is not finite")


def _completed(trainer: Trainer, state: dict[str, Any]) -> dict[str, Any]:
    """Return another run's checkpoint with this run's R where its own does not fit."""
    if trainer.average is None and state["average"] is not None:
        state = {**state, "shift_block": averaged(state["average"])}
    if state["R"] is None:
        state = {**state, "R": trainer.networks.R.state_dict()}
        if state["optimizers"] is not None:
            own = trainer.optimizers["omega"].state_dict()
            state["optimizers"] = {**state["optimizers"], "omega": own}
    return state
