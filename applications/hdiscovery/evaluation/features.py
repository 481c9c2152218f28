"""Feature nets: networks that describe images. Each has a name and a hash.

unet             the diffusion model's own encoder and h; always available
digits           a classifier of real digits, trained on MNIST
inception        torchvision's Inception v3, if its weights are on this machine
FILE.pt, .pt2    a TorchScript or torch.export file, images -> features
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.dm.model import DiffusionModel
from hdiscovery.evaluation.digits import digit_classifier_of
from hdiscovery.evaluation.feature_maps import (
    DigitMaps,
    Exported,
    InceptionMaps,
    UNetMaps,
    hub_weights,
)

FEATURES = ("unet", "digits", "inception")


class FeatureNet(nn.Module):
    """A network that turns images into feature vectors, with the facts that a report states.

    Args:
        name: Name for reports.
        maps: A module from images ``[N, C, H, W]`` in [-1, 1] to a tuple of feature maps
            ``[N, c, h, w]`` or vectors ``[N, c]``, shallow to deep, or to a single such tensor.
        image_shape: ``(C, H, W)`` of the images.

    Attributes:
        name: Name for reports.
        sha256: Hash of all weights.
        num_features: Length F of a feature vector.

    Shapes:
        images ``[N, C, H, W]``, clamped to [-1, 1] -> ``[N, F]``: the deepest map, averaged over
        its pixels.
    """

    def __init__(self, name: str, maps: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.name, self._maps = name, maps
        self.sha256 = weights_hash(maps)
        self.requires_grad_(False).eval()
        parameter = next(self.parameters(), torch.zeros(()))
        self.num_features = self(parameter.new_zeros(1, *image_shape)).shape[1]

    def train(self, mode: bool = True) -> FeatureNet:
        """Stay in eval mode."""
        return super().train(False)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps, shallow to deep, without a graph."""
        with torch.no_grad():
            maps = self._maps(images.clamp(-1, 1))
        return (maps,) if isinstance(maps, Tensor) else tuple(maps)

    def forward(self, images: Tensor) -> Tensor:
        """Return the deepest map, averaged over its pixels, ``[N, F]``."""
        deepest = self.maps(images)[-1]
        return deepest.flatten(2).mean(2) if deepest.ndim == 4 else deepest.flatten(1)

    def described(self) -> dict[str, str | int]:
        """Return name, hash and length, for a report."""
        return {"name": self.name, "sha256": self.sha256, "num_features": self.num_features}


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and values of a module's tensors, in hexadecimal."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def feature_net(
    name: str,
    dm: DiffusionModel,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    progress: Any = iter,
) -> FeatureNet:
    """Return the feature net of that name for a diffusion model's images, on the model's device.

    Args:
        name: One of `FEATURES`, or a TorchScript (``.pt``) or torch.export (``.pt2``) file.
        dm: The diffusion model.
        data: Folder of MNIST, for ``"digits"``.
        cache: Where ``"digits"`` keeps its classifier; see `digit_classifier_of`.
        progress: Wraps the loop that trains the classifier.

    Raises:
        FileNotFoundError: If weights or data are not on this machine.
        ValueError: If the net does not take images of the model's shape.
    """
    maps: nn.Module
    match name:
        case "unet":
            maps = UNetMaps(dm)
        case "digits":
            maps = DigitMaps(digit_classifier_of(dm.image_shape, data, cache, progress=progress)[0])
        case "inception":
            maps = InceptionMaps(hub_weights("inception_v3_google-0cc3c7bd.pth"))
        case _:
            maps = _from_file(name)
    try:
        return FeatureNet(name, maps.to(next(dm.unet.parameters()).device), dm.image_shape)
    except RuntimeError as error:
        raise ValueError(
            f"The feature net {name!r} failed on images of shape {dm.image_shape}: {error}"
        ) from error


def lpips_distance(device: torch.device) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """Return LPIPS with AlexNet, averaged over pairs of images in [-1, 1], and its hash.

    Raises:
        FileNotFoundError: If AlexNet's weights are not on this machine.
    """
    hub_weights("alexnet-owt-7be5be79.pth")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity("alex", reduction="mean").to(device)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        x, y = ((z.expand(-1, 3, -1, -1) if z.shape[1] == 1 else z) for z in (x, y))
        x, y = (F.interpolate(z, size=(64, 64)) if z.shape[-1] < 64 else z for z in (x, y))
        with torch.no_grad():
            return metric(x.clamp(-1, 1), y.clamp(-1, 1))

    return distance, weights_hash(metric)


def perceptual_distance(net: FeatureNet, x: Tensor, y: Tensor) -> Tensor:
    """Return the distance of each pair of images: LPIPS without its learnt weights.

        d = mean over maps, mean over pixels, |f(x) / |f(x)| - f(y) / |f(y)||^2

    The norms are over channels. The result is ``[N]``, between 0 and 4.

    References:
        Zhang et al. (2018), The Unreasonable Effectiveness of Deep Features as a Perceptual Metric.
    """
    parts = []
    for a, b in zip(net.maps(x), net.maps(y), strict=True):
        square = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1)
        parts.append(square.flatten(1).mean(1) if square.ndim > 1 else square)
    return torch.stack(parts).mean(0)


def _from_file(name: str) -> nn.Module:
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"`features` {name!r} was not found: it is neither a file nor one of "
            f"{', '.join(FEATURES)}."
        )
    try:
        if path.suffix == ".pt2":
            return Exported(torch.export.load(path).module())
        return torch.jit.load(path, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"`features` {path} cannot be loaded as a module ({error}). Write it with "
            "`torch.jit.save(torch.jit.script(net), 'net.pt')` or `torch.export.save`; a state "
            "dict is not enough."
        ) from error
