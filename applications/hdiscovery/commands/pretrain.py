"""Train a diffusion model on MNIST."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import tyro

from hdiscovery.commands.train import bar

HELP = "train a diffusion model on MNIST"
EXAMPLES = ("hdiscovery pretrain --out runs/dm --data data",)
TAKES_FIELDS = OWN_HELP = True  # those of PretrainConfig


def add_options(parser: ArgumentParser) -> None:
    """Declare nothing: the options are the config's fields."""


def run(options: Namespace) -> None:
    """Train, and say where the model is."""
    from hdiscovery.dm.device import device_of
    from hdiscovery.train.pretrain import PretrainConfig, begun, pretrain

    config = tyro.cli(PretrainConfig, args=options.rest, prog="hdiscovery pretrain")
    device_of(config.device)  # before there is a folder
    if config.resume:  # as it was begun, but for what is said anew
        config = tyro.cli(PretrainConfig, args=options.rest, default=begun(config.out))
    for _ in bar(pretrain(config), config.steps, ("loss",)):
        pass
    print(f"wrote {config.out / 'dm.safetensors'}")
