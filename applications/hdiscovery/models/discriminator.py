"""The discriminator: the encoder of the diffusion model's UNet, pooled to one logit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hdiscovery.models.adm_unet import (
    UNetConfig,
    encoder_stages,
    group_norm,
    middle_stage,
    timestep_embedding,
    zeroed,
)
from hdiscovery.models.dm import DiffusionModel


class Discriminator(nn.Module):
    """ADM's encoder UNet with adaptive pooling, fed with t = 0; its last layer starts at zero.

    With the shift block's heads at zero too, both sides begin in the equilibrium: D = 1/2.

    Shapes:
        x ``[N, C, H, W]`` -> logits ``[N]``.

    References:
        Kim et al. (2022), Refining Generative Process with Discriminator Guidance.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb, ch = config.embedding_channels, config.widths[-1]
        self.time_embed = nn.Sequential(
            nn.Linear(config.num_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        self.input_blocks, _ = encoder_stages(config)
        self.middle_block = middle_stage(config)
        self.out = nn.Sequential(
            group_norm(ch), nn.SiLU(), nn.AdaptiveAvgPool2d(1), zeroed(nn.Conv2d(ch, 1, 1)),
            nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        t = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels))
        for stage in self.input_blocks:
            x = stage(x, emb)
        return self.out(self.middle_block(x, emb)).squeeze(1)


def build_discriminator(dm: DiffusionModel) -> nn.Module:
    """Return a new discriminator of the images of ``dm``: the encoder of its kind of UNet, pooled.

    Args:
        dm: The diffusion model. Its architecture is taken, not its weights.

    Returns:
        A module from images ``[N, C, H, W]`` to logits ``[N]``, all of them 0 until it learns; the
        layer that makes them so is its ``out[3]``.
    """
    return Discriminator(dm.config)
