"""ADM's UNet, split where h-space is: encode, middle, decode.

Module names and tensor shapes equal guided-diffusion's, so that published ADM and PDAE state dicts
load strictly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hdiscovery.dm.adm_blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    Stage,
    Upsample,
    group_norm,
    timestep_embedding,
    zeroed,
)
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.hspace import Encoded, HSpaceUNet


def encoder_stages(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """Return ADM's ``input_blocks`` and the width that each of them leaves."""
    widths = config.widths
    ch = widths[0]
    stages = [Stage(nn.Conv2d(config.in_channels, ch, 3, padding=1))]
    out_widths = [ch]
    edge = config.image_size
    for level, width in enumerate(widths):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(ch, width, config)]
            ch = width
            if edge in config.attention_resolutions:
                layers.append(AttentionBlock(ch, config))
            stages.append(Stage(*layers))
            out_widths.append(ch)
        if level < len(widths) - 1:
            down = (
                ResBlock(ch, ch, config, resample="down")
                if config.resblock_updown
                else Downsample(ch)
            )
            stages.append(Stage(down))
            out_widths.append(ch)
            edge //= 2
    return nn.ModuleList(stages), out_widths


def middle_stage(config: UNetConfig) -> Stage:
    """Return ADM's ``middle_block``; its output is h-space."""
    ch = config.widths[-1]
    return Stage(ResBlock(ch, ch, config), AttentionBlock(ch, config), ResBlock(ch, ch, config))


def decoder_stages(config: UNetConfig, skip_widths: list[int]) -> nn.ModuleList:
    """Return ADM's ``output_blocks``, which consume the skips from the last to the first."""
    widths, skips = config.widths, list(skip_widths)
    ch = widths[-1]
    edge = config.image_size // 2 ** (len(widths) - 1)
    stages = []
    for level in range(len(widths) - 1, -1, -1):
        for block in range(config.num_res_blocks + 1):
            layers: list[nn.Module] = [ResBlock(ch + skips.pop(), widths[level], config)]
            ch = widths[level]
            if edge in config.attention_resolutions:
                layers.append(AttentionBlock(ch, config))
            if level and block == config.num_res_blocks:
                layers.append(
                    ResBlock(ch, ch, config, resample="up")
                    if config.resblock_updown
                    else Upsample(ch)
                )
                edge *= 2
            stages.append(Stage(*layers))
    return nn.ModuleList(stages)


class ADMUNet(HSpaceUNet):
    """ADM's noise-prediction UNet.

    Args:
        config: The architecture.

    Shapes:
        x ``[N, C, H, W]``, t ``[N]`` (0-based training indices) -> ``[N, C or 2C, H, W]``.

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis.

    Example:
        >>> config = UNetConfig(image_size=16, num_channels=32, channel_mult=(1, 1))
        >>> unet = ADMUNet(config)
        >>> unet(torch.zeros(2, 3, 16, 16), torch.tensor([0, 999])).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.in_channels, config.image_size, config.image_size)
        self.h_shape = config.h_shape
        self.embedding_channels = emb = config.embedding_channels
        self.time_embed = nn.Sequential(
            nn.Linear(config.num_channels, emb), nn.SiLU(), nn.Linear(emb, emb)
        )
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, emb)
        self.input_blocks, skip_widths = encoder_stages(config)
        self.middle_block = middle_stage(config)
        self.output_blocks = decoder_stages(config, skip_widths)
        ch = config.widths[0]
        out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.out = nn.Sequential(
            group_norm(ch), nn.SiLU(), zeroed(nn.Conv2d(ch, out_channels, 3, padding=1))
        )

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the embedding of times ``t`` ``[N]`` (and classes ``y`` ``[N]``)."""
        if (y is None) != (self.config.num_classes is None):
            raise ValueError(
                "`y` (class indices) must be given to a class-conditional model, and to no "
                f"other: num_classes is {self.config.num_classes}, y is {y}. In Python, "
                "`hdiscovery.dm.conditioned.under(dm, label)` is the model of one class."
            )
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t.to(dtype), self.config.num_channels))
        return emb if y is None else emb + self.label_emb(y)

    def encode(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Encoded:
        """Return the deepest features, the skips and the time embedding of ``x`` at ``t``."""
        emb = self.embed(t, y)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        return Encoded(x, tuple(skips), emb)

    def middle(self, encoded: Encoded) -> Tensor:
        """Return ``h``, the point in h-space, ``[N, *config.h_shape]``."""
        return self.middle_block(encoded.features, encoded.embedding)

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the network's output for ``h``, which may be shifted; the skips are not."""
        emb = encoded.embedding
        for stage, skip in zip(self.output_blocks, reversed(encoded.skips), strict=True):
            h = stage(torch.cat([h, skip], dim=1), emb)
        return self.out(h)
