"""What a discovery run is made of: groups of settings, each checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hdiscovery.directions.groups import GROUP_OF, GROUPS, from_tables, refuse_unknown
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.settings import (
    LossSettings,
    ModelSettings,
    NetworksSettings,
    SamplingSettings,
    ShiftSettings,
)
from hdiscovery.directions.training_settings import (
    MemorySettings,
    OptimizerSettings,
    RunSettings,
    TrainingSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How directions are discovered.

    A field's name is unique over all groups. `of` and `replace` therefore take fields by their
    names alone, as the command line does.

    Attributes:
        model: The frozen diffusion model.
        sampling: The sampling chain.
        shift: The directions and their shifts.
        networks: Shift block and reconstructor.
        loss: Weights of the loss.
        optimizer: Adam and the moving average.
        training: Steps and batches.
        memory: How the gradient is computed.
        run: Seed, checkpoints and where the run begins.

    Raises:
        ValueError: If a field has the wrong type or is out of range.

    Example:
        >>> config = DiscoveryConfig.of(K=8, learning_rate=1e-4)
        >>> config.shift.K, config.replace(M=5).sampling.M
        (8, 5)
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    shift: ShiftSettings = field(default_factory=ShiftSettings)
    networks: NetworksSettings = field(default_factory=NetworksSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        for name, kind in GROUPS.items():
            group = getattr(self, name)
            if not isinstance(group, kind):
                raise ValueError(f"`{name}` must be a {kind.__name__}, got {group!r}.")

    @classmethod
    def of(cls, **settings: Any) -> DiscoveryConfig:
        """Return a config from fields by their names alone; the others keep their defaults.

        Raises:
            ValueError: If a field is unknown, has the wrong type or is out of range.
        """
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> DiscoveryConfig:
        """Return this config with some fields replaced, given by their names alone.

        Raises:
            ValueError: If a field is unknown, has the wrong type or is out of range.
        """
        refuse_unknown(settings)
        changes = {
            group: replace(getattr(self, group), **inside)
            for group in GROUPS
            if (inside := {k: v for k, v in settings.items() if GROUP_OF[k] == group})
        }
        return replace(self, **changes)

    def leaves(self) -> dict[str, Any]:
        """Return all fields by their names alone."""
        return {name: getattr(getattr(self, group), name) for name, group in GROUP_OF.items()}

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates by the letters of what learns: phi and its heads, omega (R), psi (D)."""
        return self.optimizer.rates

    @property
    def all_steps(self) -> int:
        """Steps that train the directions, and steps that settle."""
        return self.training.steps + self.training.settle_steps

    def settle_rate(self, step: int) -> float:
        """Return R's learning rate in a step that settles."""
        share = (step - self.training.steps) / self.training.settle_steps
        return self.rates["omega"] * (1 + math.cos(math.pi * share)) / 2

    def changed(self, **changes: Any) -> DiscoveryConfig:
        """Return the config of a run that goes on with other settings.

        Raises:
            ValueError: If the networks or the run's records depend on a changed setting.
        """
        refuse_unknown(changes)
        before = self.leaves()
        for name, value in changes.items():
            if name not in CHANGEABLE and value != before[name]:
                raise ValueError(
                    f"`{name}` of a run cannot change on its way (it is {before[name]!r}). "
                    f"Settings that can change: {', '.join(CHANGEABLE)}. Start a new run to change "
                    f"`{name}`."
                )
        return self.replace(**changes)


CHANGEABLE = ("steps", "settle_steps", "learning_rate", "learning_rate_R", "learning_rate_D",
              "lambda_G", "lambda_1", "lambda_2", "lambda_l1", "l1_gamma", "min_shift",
              "batch_size", "r_updates", "r_buffer", "r_augment", "r_dropout", "ema", "plan",
              "micro_batch", "frozen", "shard_dm", "autocast", "compile",
              "save_every")  # fmt: skip
# A run that begins with another run's networks must agree with it in these.
MADE_BY = ("dm", "K", "shift_form", "time_invariant", "adam")


def config_of(entries: Mapping[str, Any], source: str) -> DiscoveryConfig:
    """Return the config that tables describe; fields that they leave out keep their defaults.

    Raises:
        ValueError: If a field is unknown, has the wrong type or is out of range; the error names
            the source.
    """
    settings = from_tables(entries, source)
    try:
        return DiscoveryConfig.of(**settings)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def run_config(run: RunFolder) -> DiscoveryConfig:
    """Return the config that a run has now.

    Raises:
        ValueError: If ``config.json`` is not a config of this version.
    """
    path = run.path / "config.json"
    try:
        entries = run.read_json("config.json")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} is not the config of a run: it holds no tables of fields.")
    return config_of(entries, f"{path}")
