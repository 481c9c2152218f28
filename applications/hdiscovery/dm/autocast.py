"""Lower precision inside the UNet, and nowhere else."""

from __future__ import annotations

from typing import Literal

import torch

Autocast = Literal["off", "bf16"]


def autocast(mode: Autocast, device: torch.device | str) -> torch.autocast:
    """Return the context that a UNet runs in.

    The update of the state stays outside: at t = 999 it multiplies an error of the network by
    157.

    Args:
        mode: ``"off"`` or ``"bf16"``.
        device: Where the network is.

    Example:
        >>> with autocast("bf16", "cpu"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=mode == "bf16")


def fast_mode(device: torch.device | str) -> Autocast:
    """Return ``"bf16"`` where it is faster than float32: on CUDA, and on CPUs built for it.

    Elsewhere bfloat16 is emulated, and slower.
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.9 does not say
        return "off"
    return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "off"
