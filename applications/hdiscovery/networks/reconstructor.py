"""The reconstructor R(x_0, shifted x_0) -> (logits over k, shift); inputs are in this order."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

ReconstructorName = Literal["lenet", "resnet18", "difference", "deep-difference"]


class LeNet(nn.Module):
    """GANLatentDiscovery's LeNet on both images, with a head for k and a head for s.

    Shapes:
        two images ``[N, C, H, W]``, H and W at least 32 -> logits ``[N, K]``, shift ``[N]``.
    """

    def __init__(self, channels: int, num_directions: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv5(2 * channels, 6), nn.MaxPool2d(2), *_conv5(6, 16), nn.MaxPool2d(2),
            *_conv5(16, 120), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout),
        )  # fmt: skip
        self.logits = _head(num_directions)
        self.shift = _head(1)

    def forward(self, x_0: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        if min(x_0.shape[-2:]) < 32:
            raise ValueError(
                f"`reconstructor` 'lenet' needs images of 32 pixels or more, got "
                f"{tuple(x_0.shape[-2:])}. Use 'difference' for smaller images."
            )
        f = self.features(torch.cat([x_0, shifted], dim=1))
        return self.logits(f), self.shift(f).squeeze(1)


class ResNet18(nn.Module):
    """An untrained ResNet-18 on both images, with a head for k and a head for s.

    Shapes:
        two images ``[N, C, H, W]`` -> logits ``[N, K]``, shift ``[N]``.
    """

    def __init__(self, channels: int, num_directions: int, dropout: float = 0.0) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.features = resnet18(weights=None)
        self.features.conv1 = nn.Conv2d(2 * channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.features.conv1.weight, mode="fan_out", nonlinearity="relu")
        # The classifier of ResNet is dropped: parameters without a gradient stop distributed
        # training.
        self.features.fc = nn.Dropout(dropout)  # pyright: ignore[reportAttributeAccessIssue]
        self.logits = nn.Linear(512, num_directions)
        self.shift = nn.Linear(512, 1)

    def forward(self, x_0: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(torch.cat([x_0, shifted], dim=1))
        return self.logits(f), self.shift(f).squeeze(1)


class Difference(nn.Module):
    """A small network that also takes the normalised difference of the images.

        d = (x~_0 - x_0) / (std(x~_0 - x_0) + 0.002)       over a pair's channels and pixels

    d shows a direction in the same way at all strengths, so the network learns from few samples;
    the strength itself is still visible in the two images. A deterministic sampler makes both
    images, so d holds no noise, and 0.002 only matters near s = 0.

    Args:
        channels: Channels of an image.
        num_directions: K.
        image_size: Edge of an image.
        dropout: Dropout before the head.
        depth: Convolutions at each of the three resolutions; the first of them halves the size.

    Shapes:
        two images ``[N, C, E, E]`` -> logits ``[N, K]``, shift ``[N]``.
    """

    def __init__(
        self,
        channels: int,
        num_directions: int,
        image_size: int,
        dropout: float = 0.0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        widths = (3 * channels, 32, 64, 128)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += _conv3(a, b, stride=2)
            for _ in range(depth - 1):
                layers += _conv3(b, b, stride=1)
        edge = (image_size + 7) // 8
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(128 * edge * edge, num_directions + 1)

    def forward(self, x_0: Tensor, shifted: Tensor) -> tuple[Tensor, Tensor]:
        d = shifted - x_0
        d = d / (d.flatten(1).std(1) + 0.002)[:, None, None, None]
        out = self.head(self.features(torch.cat([x_0, shifted, d], dim=1)))
        return out[:, :-1], out[:, -1]


def build_reconstructor(
    name: ReconstructorName,
    *,
    channels: int,
    image_size: int,
    num_directions: int,
    dropout: float = 0.0,
) -> nn.Module:
    """Return a new reconstructor of that name.

    Raises:
        ValueError: If ``name`` is unknown.
    """
    if name == "lenet":
        return LeNet(channels, num_directions, dropout)
    if name == "resnet18":
        return ResNet18(channels, num_directions, dropout)
    if name == "difference":
        return Difference(channels, num_directions, image_size, dropout)
    if name == "deep-difference":
        return Difference(channels, num_directions, image_size, dropout, depth=2)
    raise ValueError(
        f"`reconstructor` must be one of {', '.join(get_args(ReconstructorName))}, got {name!r}."
    )


def _conv5(a: int, b: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(a, b, 5), nn.BatchNorm2d(b), nn.ReLU()


def _conv3(a: int, b: int, *, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(a, b, 3, stride=stride, padding=1), nn.BatchNorm2d(b), nn.ReLU()


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(120, 84), nn.BatchNorm1d(84), nn.ReLU(), nn.Linear(84, outputs))
