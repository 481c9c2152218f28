"""The discriminator: an encoder like the diffusion model's UNet, pooled to one logit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hdiscovery.dm.adm_blocks import timestep_embedding, zeroed
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import encoder_stages, middle_stage
from hdiscovery.dm.conditioned import Conditioned
from hdiscovery.dm.diffusers_unets import DiffusersUNet
from hdiscovery.dm.hspace import HSpaceUNet
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.prediction import PredictsNoise


class Discriminator(nn.Module):
    """ADM's encoder with adaptive pooling, at t = 0; its last layer starts at zero.

    The shift block's heads start at zero too, so training begins in equilibrium: D = 1/2.

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
        self.out = pooled_logit(ch)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels))
        for stage in self.input_blocks:
            x = stage(x, emb)
        return self.out(self.middle_block(x, emb)).squeeze(1)


class PooledEncoder(nn.Module):
    """The encoder and middle of any UNet, at t = 0, pooled like `Discriminator`.

    Args:
        encoder: The network; its decoder is not used.
        groups: Groups of the last normalisation.

    Shapes:
        x ``[N, C, H, W]`` -> logits ``[N]``.
    """

    def __init__(self, encoder: HSpaceUNet, groups: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.out = pooled_logit(encoder.h_shape[0], groups)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.out(self.encoder.middle(self.encoder.encode(x, t))).squeeze(1)


def pooled_logit(channels: int, groups: int = 32) -> nn.Sequential:
    """Return layers from features ``[N, C, H, W]`` to a logit ``[N, 1]`` that starts at 0."""
    return nn.Sequential(
        nn.GroupNorm(groups, channels), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        zeroed(nn.Conv2d(channels, 1, 1)), nn.Flatten(),
    )  # fmt: skip


def build_discriminator(dm: DiffusionModel) -> nn.Module:
    """Return a new discriminator for the images of ``dm``, with the encoder of its UNet's kind.

    Args:
        dm: The diffusion model. The discriminator takes its architecture and its condition (a
            prompt or a class), but not its weights.

    Returns:
        A module from images ``[N, C, H, W]`` to logits ``[N]``. All logits are 0 before training,
        because its last layer ``out[3]`` starts at zero.
    """
    unet, condition = dm.unet, None
    while isinstance(unet, (Conditioned, PredictsNoise)):
        condition = unet.condition if isinstance(unet, Conditioned) else condition
        unet = unet.unet
    if not isinstance(unet, DiffusersUNet):
        return Discriminator(replace(dm, unet=unet).config)
    encoder = unet.fresh_encoder()
    groups = unet.theirs.config.norm_num_groups or 32
    if condition is None:
        return PooledEncoder(encoder, groups)
    return PooledEncoder(Conditioned(encoder, condition), groups)
