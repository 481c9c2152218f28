"""A hash of a network's weights, the same on every machine."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from hdiscovery.dm.model import DiffusionModel


def weights_hash(module: nn.Module) -> str:
    """Return the sha256 of a module's state: names, shapes and values as float32.

    Tensors are hashed in the order of their names. The hash does not depend on the order of
    construction, on the device, or on a cast to float64.

    Args:
        module: The network; its state is copied to the CPU, one tensor at a time.

    Example:
        >>> weights_hash(nn.Identity())[:8]
        'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        numbers = value.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(numbers.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def dm_hash(dm: DiffusionModel) -> str:
    """Return the sha256 of a diffusion model: its network's weights and its betas.

    About a second for 10^8 weights. Betas count to ten digits: the last ones depend on the machine.
    """
    betas = " ".join(f"{beta:.9e}" for beta in dm.schedule.betas.tolist())
    return hashlib.sha256(f"{weights_hash(dm.unet)} {betas}".encode()).hexdigest()
