"""Discover directions, by a preset or a recipe with some fields changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from hdiscovery.commands.bars import bar, bars
from hdiscovery.commands.flags import read_flags
from hdiscovery.commands.options import Device
from hdiscovery.directions.config import DiscoveryConfig

EXAMPLES = (
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    "hdiscovery train MNIST32-400-20-32-5 --out runs/a --resume --steps 4000",
    "hdiscovery train MNIST32-400-20-32-5 --K 8 --dry-run > recipe.toml",
    "hdiscovery train --config recipe.toml --out runs/b",
    "torchrun --nproc-per-node 4 -m hdiscovery train CelebAHQ128-500-40-256-2 --dm dm.safetensors",
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Discover directions, by a preset or a recipe with some fields changed.

    Attributes:
        preset: Name of a preset: MNIST32-400-20-32-5, Anime64-400-40-128-2,
            CelebAHQ128-500-40-256-2, AFHQ128-400-40-256-2 or MNIST32-demo.
        config: A recipe of your own, a TOML file, in place of a preset.
        out: Run folder; by default runs/ and the name of the preset or the recipe.
        resume: Continue the run in the folder. Fields that are given change; a recipe's fields
            count as given, a preset's do not.
        dry_run: Print the config as a recipe, and train nothing.
    """

    preset: tyro.conf.Positional[str | None] = None
    config: Path | None = None
    out: Path | None = None
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.preset is not None and self.config is not None:
            raise ValueError(
                f"Both a preset, {self.preset!r}, and `--config {self.config}` are given. Leave "
                "one of them out."
            )

    @property
    def recipe(self) -> str | Path | None:
        """What names the recipe."""
        return self.config or self.preset

    def start(self) -> DiscoveryConfig:
        """Return the config before fields are changed, whose values the help shows."""
        from hdiscovery.api.train import config_of

        return DiscoveryConfig() if self.recipe is None else config_of(self.recipe)


def read(words: Sequence[str]) -> tuple[TrainOptions, dict[str, Any]]:
    """Return the command's own options, and the fields that change."""
    return read_flags(
        TrainOptions, words, command="train", examples=EXAMPLES, shown=TrainOptions.start
    )


def run(options: tuple[TrainOptions, dict[str, Any]]) -> None:
    """Train in a new folder, or go on in an old one."""
    from hdiscovery.api.train import config_of, train
    from hdiscovery.directions.recipe import as_toml

    own, fields = options
    if own.dry_run:
        print(as_toml(config_of(own.recipe).replace(**fields)))
        return
    train(
        own.recipe, own.out, resume=own.resume, device=own.device, watch=bar, progress=bars,
        **fields,
    )  # fmt: skip
