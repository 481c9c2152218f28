"""The distance of two images in a space of features: pixels, or the model's own encoder."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from hdiscovery.dm.model import DiffusionModel

FeatureName = Literal["encoder", "pixels"]


class Features(Protocol):
    """A function from images to the features in which they are compared."""

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
    """The diffusion model's bottleneck h of the unnoised images, at an early time t.

    It needs no other network, and the model has learnt its own kind of images. It is not LPIPS,
    which can be used instead by implementing `Features`.

    Args:
        dm: The diffusion model.
        t: The time passed to the network, 0-based; by default T/20. At t = 0 the features follow
            texture and separate digits less well.
    """

    def __init__(self, dm: DiffusionModel, *, t: int | None = None) -> None:
        self.dm = dm
        self.t = dm.schedule.num_train_steps // 20 if t is None else t
        self.name = f"encoder of the diffusion model at t = {self.t}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return h, flattened to ``[N, C H W]``."""
        unet = self.dm.unet
        with torch.no_grad():
            encoded = unet.encode(images, images.new_full((len(images),), self.t).long())
            return unet.middle(encoded).flatten(1)


def build_features(name: FeatureName, dm: DiffusionModel) -> Features:
    """Return the features of that name.

    Raises:
        ValueError: If ``name`` is unknown.
    """
    if name not in get_args(FeatureName):
        raise ValueError(
            f"`features` must be one of {', '.join(get_args(FeatureName))}, got {name!r}."
        )
    return Encoder(dm) if name == "encoder" else Pixels()


def distance(features: Features, images: Tensor, others: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair's features divided by sqrt(D), ``[N]``.

    For pixels this is the root mean square difference, at most 2.
    """
    difference = features(images.clamp(-1, 1)) - features(others.clamp(-1, 1))
    return difference.square().mean(1).sqrt()
