"""What a discovery run is made of, and the presets named as the paper names its models."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Literal

from chainograd.planners import PlanName
from hdiscovery.autocast import Autocast
from hdiscovery.models.reconstructor import ReconstructorName
from hdiscovery.models.shift_block import ShiftForm
from hdiscovery.run import RunFolder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How directions are discovered.

    Attributes:
        dm: A weight file, or the name of a shipped diffusion model; empty in presets whose model
            is not shipped.
        K: Number of directions.
        S: Largest shift; shifts are drawn from U[-S, S].
        M: Sampling steps.
        t_stop: Last time (0-based, inclusive) at which samples are shifted.
        batch_size: Pairs a step.
        steps: Training steps.
        reconstructor: Which network tells k and s from a pair.
        r_updates: Updates of the reconstructor a step; those beyond the first are on pairs drawn
            from a buffer. 1 is the paper's recipe.
        r_buffer: Batches in that buffer.
        shift_form: The shift block's trunk: that of ADM's networks or of DDPM's.
        head_std: Standard deviation of the shift block's heads at the start; the paper's is 0.
        learning_rate: Of Adam, for all three networks.
        lambda_1: Weight of the cross entropy over k.
        lambda_2: Weight of the l1 error of s.
        plan: ``"nodes"`` goes back in the memory of one step, ``"graph"`` keeps the graphs of all M
            and takes a third less time; the gradients are the same.
        autocast: ``"bf16"`` runs the UNet and the shift block under bfloat16 autocast.
        grid: Convention of the time grid.
        seed: Of the new networks and of all that is drawn.
        save_every: Steps between checkpoints.

    Raises:
        ValueError: If a field is out of range.
    """

    dm: str = "MNIST32-small"
    K: int = 32
    S: float = 5.0
    M: int = 20
    t_stop: int = 400
    batch_size: int = 128
    steps: int = 3000
    reconstructor: ReconstructorName = "lenet"
    r_updates: int = 1
    r_buffer: int = 8
    shift_form: ShiftForm = "adm"
    head_std: float = 0.0
    learning_rate: float = 1e-3
    lambda_1: float = 0.1
    lambda_2: float = 0.1
    plan: PlanName = "nodes"
    autocast: Autocast = "off"
    grid: Literal["asyrp", "author"] = "asyrp"
    seed: int = 0
    save_every: int = 10

    def __post_init__(self) -> None:
        for name, least in (("K", 2), ("M", 1), ("batch_size", 2), ("steps", 1), ("r_updates", 1),
                            ("r_buffer", 1), ("save_every", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.M > 999:
            raise ValueError(f"`M` can be 999 at most, one step a training time, got {self.M}.")
        for name in ("S", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` must be positive and finite, got {getattr(self, name)}."
                )
        for name in ("lambda_1", "lambda_2", "head_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"`{name}` must be at least 0 and finite, got {getattr(self, name)}."
                )
        if not 0 <= self.t_stop <= 999:
            raise ValueError(
                f"`t_stop` is a 0-based training time and must lie in 0 … 999, got {self.t_stop}. "
                "At 0 every step is shifted, at 999 the first alone."
            )

    def changed(self, **changes: Any) -> DiscoveryConfig:
        """Return the config of a run that goes on with other settings.

        Raises:
            ValueError: If a setting is changed that the networks or what was recorded depend on.
        """
        refused = [
            name
            for name, value in changes.items()
            if name not in CHANGEABLE and value != getattr(self, name)
        ]
        if refused:
            raise ValueError(
                f"`{refused[0]}` of a run cannot change on its way (it is "
                f"{getattr(self, refused[0])!r}). Those that can: {', '.join(CHANGEABLE)}. Start a "
                "new run for the others."
            )
        return replace(self, **changes)


CHANGEABLE = ("steps", "learning_rate", "lambda_1", "lambda_2", "batch_size", "r_updates",
              "r_buffer", "plan", "autocast", "save_every")  # fmt: skip


def presets() -> dict[str, Any]:
    """Return the preset files by name."""
    folder = resources.files("hdiscovery") / "presets"
    return {f.name[: -len(".toml")]: f for f in folder.iterdir() if f.name.endswith(".toml")}


def from_preset(name: str, **changes: Any) -> DiscoveryConfig:
    """Return a preset's config, with some fields replaced.

    Raises:
        ValueError: If there is no such preset, it has an unknown field, or it needs a ``dm``.

    Example:
        >>> from_preset("MNIST32-400-20-32-5", K=8).K
        8
    """
    if name not in presets():
        raise ValueError(f"`preset` {name!r} is unknown; there are: {', '.join(presets())}.")
    config = _config(tomllib.loads(presets()[name].read_text()), f"Preset {name!r}")
    config = replace(config, **changes)
    if not config.dm:
        raise ValueError(
            f"Preset {name!r} needs its diffusion model, which is not shipped: pass `--dm FILE`. "
            "Published ADM and PDAE weights become such a file by `hdiscovery convert`."
        )
    return config


def run_config(run: RunFolder) -> DiscoveryConfig:
    """Return the config that a run was started with.

    Raises:
        ValueError: If it is not one of this version's.
    """
    return _config(run.read_json("config.json"), f"{run.path / 'config.json'}")


def _config(entries: dict[str, Any], source: str) -> DiscoveryConfig:
    unknown = set(entries) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        raise ValueError(f"{source} has unknown fields {sorted(unknown)}.")
    return DiscoveryConfig(**entries)
