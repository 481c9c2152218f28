"""The layers of ADM's UNet, named as guided-diffusion names them: state dicts load strictly."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.dm.adm_config import AttentionOrder, UNetConfig


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
