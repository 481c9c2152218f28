"""The discriminator: the encoder of the diffusion model's UNet, pooled to one logit."""

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
        self.out = pooled_logit(ch)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        emb = self.time_embed(timestep_embedding(t, self.config.num_channels))
        for stage in self.input_blocks:
            x = stage(x, emb)
        return self.out(self.middle_block(x, emb)).squeeze(1)


class PooledEncoder(nn.Module):
    """Any UNet's encoder and middle, fed with t = 0 and pooled like `Discriminator`.

    Args:
        encoder: The network; its decoder is not used.
        groups: Of the last normalisation.

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
    """Return the layers from features ``[N, C, H, W]`` to one logit ``[N, 1]``, 0 at the start."""
    return nn.Sequential(
        nn.GroupNorm(groups, channels), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
        zeroed(nn.Conv2d(channels, 1, 1)), nn.Flatten(),
    )  # fmt: skip


def build_discriminator(dm: DiffusionModel) -> nn.Module:
    """Return a new discriminator of the images of ``dm``: the encoder of its kind of UNet, pooled.

    Args:
        dm: The diffusion model. Its architecture is taken, and the condition it is under; its
            weights are not.

    Returns:
        A module from images ``[N, C, H, W]`` to logits ``[N]``, all of them 0 until it learns; the
        layer that makes them so is its ``out[3]``.
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
