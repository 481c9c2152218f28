"""Train a diffusion model on MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hdiscovery.commands.bars import bar
from hdiscovery.commands.options import parsed

if TYPE_CHECKING:
    from hdiscovery.training.pretrain_config import PretrainConfig

EXAMPLES = ("hdiscovery pretrain --out runs/dm --data data",)


def read(words: Sequence[str]) -> PretrainConfig:
    """Return the config; a run that is continued has its own, but for the options that are given.

    Raises:
        SystemExit: If help was shown, or an option cannot be read.
    """
    from hdiscovery.training.pretrain_config import PretrainConfig, begun

    how = {"prog": "hdiscovery pretrain", "examples": EXAMPLES, "markers": ()}
    config = parsed(PretrainConfig, words, **how)
    return (
        parsed(PretrainConfig, words, default=begun(config.out), **how) if config.resume else config
    )


def run(config: PretrainConfig) -> None:
    """Train, and say where the model is."""
    from hdiscovery.dm.device import device_of
    from hdiscovery.training.pretrain import pretrain

    device_of(config.device)  # before there is a folder
    for _ in bar(pretrain(config), config.steps, ("loss",)):
        pass
    print(f"wrote {config.out / 'dm.safetensors'}")
