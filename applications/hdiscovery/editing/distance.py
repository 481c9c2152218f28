"""How different two images look, by features that can be chosen."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from hdiscovery.dm.model import DiffusionModel

FeatureName = Literal["encoder", "pixels"]


class Features(Protocol):
    """What images are compared by."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Return features ``[N, D]`` of images ``[N, C, H, W]`` in [-1, 1]."""
        ...


class Pixels:
    """The pixels themselves."""

    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``[N, C H W]``."""
        return images.flatten(1)


class Encoder:
    """The diffusion model's own bottleneck h, of the images as they are, told a little noise.

    It needs no other network and knows what the model's data looks like; it is no LPIPS, whose
    place any `Features` can take.

    Args:
        dm: The diffusion model.
        t: The time that the network is told, 0-based; by default a twentieth of the way. At 0 it
            looks at texture, and tells digits apart less well.
    """

    def __init__(self, dm: DiffusionModel, *, t: int | None = None) -> None:
        self.dm = dm
        self.t = dm.schedule.num_train_steps // 20 if t is None else t
        self.name = f"encoder of the diffusion model at t = {self.t}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``[N, C H W]`` of h-space's shape."""
        unet = self.dm.unet
        with torch.no_grad():
            encoded = unet.encode(images, images.new_full((len(images),), self.t).long())
            return unet.middle(encoded).flatten(1)


def build_features(name: FeatureName, dm: DiffusionModel) -> Features:
    """Return features by name.

    Raises:
        ValueError: If there are none of that name.
    """
    if name not in get_args(FeatureName):
        raise ValueError(
            f"`features` must be one of {', '.join(get_args(FeatureName))}, got {name!r}."
        )
    return Encoder(dm) if name == "encoder" else Pixels()


def distance(features: Features, images: Tensor, others: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair's features over sqrt(D), ``[N]``.

    Over sqrt(D): for pixels it is the root mean square difference, 2 at most.
    """
    difference = features(images.clamp(-1, 1)) - features(others.clamp(-1, 1))
    return difference.square().mean(1).sqrt()
