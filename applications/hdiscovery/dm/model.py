"""A diffusion model: a network that predicts noise, and the schedule of that noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.hspace import HSpaceUNet


@dataclass(frozen=True, slots=True, eq=False)
class DiffusionModel:
    """A noise-prediction network and the schedule it was trained with.

    Attributes:
        unet: The network, in eval mode, its weights frozen.
        schedule: The noise schedule.
        name: Where it came from, for records.
    """

    unet: HSpaceUNet
    schedule: NoiseSchedule
    name: str

    @property
    def config(self) -> UNetConfig:
        """The architecture of an ADM network.

        Raises:
            ValueError: If it is another network.
        """
        return self.adm.config

    @property
    def adm(self) -> ADMUNet:
        """The network, if it is ADM's.

        Raises:
            ValueError: If it is another network.
        """
        if not isinstance(self.unet, ADMUNet):
            # Not a TypeError: the command line's user chose the model, and can choose another.
            raise ValueError(
                f"`dm` {self.name} is a {type(self.unet).__name__}, and this works for ADM's UNet "
                "only. `hdiscovery convert` turns a diffusers folder into one where the two agree."
            )
        return self.unet

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one image."""
        return self.unet.image_shape
