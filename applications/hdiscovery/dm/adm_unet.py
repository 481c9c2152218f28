"""ADM's UNet, split where h-space is: encode, middle, decode.

Module names and tensor shapes are those of guided-diffusion, so that published ADM and PDAE state
dicts load strictly. Its flags keep their names too, where the paper's Table 3 uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.dm.hspace import Encoded, HSpaceUNet

AttentionOrder = Literal["legacy", "new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """What fixes an ADM UNet.

    Attributes:
        image_size: Pixels along an edge; with ``channel_mult`` it fixes h-space's resolution.
        in_channels: Image channels.
        num_channels: Base width; GroupNorm has 32 groups, so every width is a multiple of 32.
        channel_mult: Width of each resolution level, in units of ``num_channels``.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Edges in *pixels* at which attention follows each block. The
            middle block always has attention, as in ADM, also when this is empty.
        num_heads: Attention heads; ignored where ``num_head_channels`` is given.
        num_head_channels: Channels per head, or None.
        attention_order: ``"legacy"`` splits heads before q, k, v; ``"new"`` after. The keys are
            the same and the results are not, so a state dict cannot tell.
        dropout: Probability inside residual blocks.
        num_classes: Number of classes of a class-conditional model, or None.
        learn_sigma: The network also predicts a variance (2C channels out, the first C are
            the noise).
        use_scale_shift_norm: The time embedding scales and shifts instead of being added.
        resblock_updown: Residual blocks change the resolution instead of plain convolutions.

    Raises:
        ValueError: If the fields contradict each other.
    """

    image_size: int
    in_channels: int = 3
    num_channels: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    num_heads: int = 1
    num_head_channels: int | None = None
    attention_order: AttentionOrder = "legacy"
    dropout: float = 0.0
    num_classes: int | None = None
    learn_sigma: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True

    def __post_init__(self) -> None:
        for mult in self.channel_mult:
            width = int(mult * self.num_channels)
            if width <= 0 or width % 32:
                raise ValueError(
                    f"`num_channels` times every `channel_mult` must be a multiple of 32 "
                    f"(GroupNorm has 32 groups), got {self.num_channels} x {mult}."
                )
            head = self.num_head_channels or 0
            if width % (head or self.num_heads):
                raise ValueError(
                    f"Attention heads must divide every width: {width} channels, `num_heads` "
                    f"{self.num_heads}, `num_head_channels` {self.num_head_channels}."
                )
        if self.image_size % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"`image_size` {self.image_size} cannot be halved "
                f"{len(self.channel_mult) - 1} times, as `channel_mult` asks."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution level."""
        return tuple(int(mult * self.num_channels) for mult in self.channel_mult)

    @property
    def embedding_channels(self) -> int:
        """Width of the time embedding, 4 x ``num_channels``."""
        return 4 * self.num_channels

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one sample in h-space."""
        edge = self.image_size // 2 ** (len(self.channel_mult) - 1)
        return (self.widths[-1], edge, edge)


def timestep_embedding(t: Tensor, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """Return sinusoidal features ``[cos(t w), sin(t w)]``, ``w_j = max_period^(-2j/dim)``.

    Args:
        t: ``[N]``, floating point; the result has its dtype.
        dim: Even width of the result.
        max_period: Period of the slowest feature, in times 2 pi.

    Returns:
        ``[N, dim]``.
    """
    half = dim // 2
    j = torch.arange(half, dtype=t.dtype, device=t.device)
    angles = t[:, None] * torch.exp(-math.log(max_period) * j / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return ADM's normalisation.

    ADM casts to float32 around it. Torch's kernels do their sums in float32 for half types by
    themselves, and without the cast the network also works in float64, as gradient checks need.
    """
    return nn.GroupNorm(32, channels)


def zeroed(module: nn.Module) -> nn.Module:
    """Return ``module`` with all its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Upsample(nn.Module):
    """Double the resolution: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """A residual block that the time embedding modulates, and that may change the resolution."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        config: UNetConfig,
        *,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = config.use_scale_shift_norm
        emb_out = 2 * out_channels if self.scale_shift else out_channels
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding_channels, emb_out))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resampled(activation(norm(x))))
        modulation = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + modulation)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self.resampled(x)) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, with a residual connection."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        head = config.num_head_channels
        self.num_heads = channels // head if head else config.num_heads
        self.order: AttentionOrder = config.attention_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        N, C, *spatial = x.shape
        x = x.reshape(N, C, -1)
        qkv = self.qkv(self.norm(x))
        # The two orders read the same 3C channels as [heads, (q k v), C/heads] or as
        # [(q k v), heads, C/heads].
        if self.order == "legacy":
            q, k, v = qkv.view(N, self.num_heads, 3, C // self.num_heads, -1).unbind(2)
        else:
            q, k, v = qkv.view(N, 3, self.num_heads, C // self.num_heads, -1).unbind(1)
        a = F.scaled_dot_product_attention(
            q.transpose(-1, -2), k.transpose(-1, -2), v.transpose(-1, -2)
        )
        h = self.proj_out(a.transpose(-1, -2).reshape(N, C, -1))
        return (x + h).reshape(N, C, *spatial)


class Stage(nn.Sequential):
    """Layers in a row; residual blocks among them also get the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


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


def _table_3(image_size: int, in_channels: int, num_channels: int, mult: tuple[int, ...],
             attention: tuple[int, ...], heads: int, dropout: float,
             order: AttentionOrder) -> UNetConfig:  # fmt: skip
    return UNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        num_channels=num_channels,
        channel_mult=mult,
        num_res_blocks=2,
        attention_resolutions=attention,
        num_heads=heads,
        dropout=dropout,
        attention_order=order,
    )


# The paper's Table 3. The attention order is not in it; PDAE, by the same author, has the new one
# for MNIST only.
TABLE_3 = {
    "MNIST32": _table_3(32, 1, 64, (1, 2, 2, 4), (), 1, 0.0, "new"),
    "Anime64": _table_3(64, 3, 64, (1, 2, 4, 8), (16,), 4, 0.0, "legacy"),
    "CelebAHQ128": _table_3(128, 3, 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, "legacy"),
    "AFHQ128": _table_3(128, 3, 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, "legacy"),
}
