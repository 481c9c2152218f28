"""Compiled UNets: fewer passes over memory, after minutes at the start."""

from __future__ import annotations

import torch

from hdiscovery.dm.hspace import HSpaceUNet

PARTS = ("encode", "middle", "decode")


def compile_parts(unet: HSpaceUNet) -> None:
    """Compile the three parts of a UNet in place by `torch.compile`, once for each shape.

    The results agree with the uncompiled network's to rounding, and equal calls return equal bits.
    A call that records a graph is compiled separately from a call that does not, and the two differ
    by rounding. A chain that replays its steps refuses that difference; it needs the plan
    ``"graph"``.

    Cost:
        One to several minutes for each process. Inductor keeps the compiled code in its cache, so
        a machine pays once.

    Args:
        unet: The network. Its weights stay what they are, and where they are.
    """
    for part in PARTS:
        setattr(unet, part, torch.compile(getattr(unet, part), dynamic=False))
