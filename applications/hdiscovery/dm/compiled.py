"""The parts of a UNet, compiled: fewer passes over memory, for minutes at the start."""

from __future__ import annotations

import torch

from hdiscovery.dm.hspace import HSpaceUNet

PARTS = ("encode", "middle", "decode")


def compile_parts(unet: HSpaceUNet) -> None:
    """Let `torch.compile` make each of the three parts of a UNet anew, once a shape, in place.

    Values agree with those of the network as it was to rounding, and the same call returns the
    same bits. A call that records a graph and one that does not are compiled apart, and differ by
    rounding: a chain that replays its steps refuses that, so it needs the plan ``"graph"``.

    Cost:
        One to several minutes for each process, once a machine: what was compiled is kept in
        inductor's cache.

    Args:
        unet: The network. Its weights stay what they are, and where they are.
    """
    for part in PARTS:
        setattr(unet, part, torch.compile(getattr(unet, part), dynamic=False))
