"""The networks inside feature nets: images -> feature maps, from shallow to deep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.dm.model import DiffusionModel


class UNetMaps(nn.Module):
    """The maps of a diffusion model's encoder and h, for clean images at an early time.

        x -> encoder(sqrt(alpha_bar_t) x, t),   t = T/10

    The input is the mean of x_t given x, not a random x_t, so that equal images have equal
    features.
    """

    def __init__(self, dm: DiffusionModel) -> None:
        super().__init__()
        self.unet = dm.unet
        self.t = dm.schedule.num_train_steps // 10
        self.scale = dm.schedule.alpha_bar(self.t) ** 0.5

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps."""
        encoded = self.unet.encode(self.scale * x, x.new_full((len(x),), self.t).long())
        return (*encoded.skips, self.unet.middle(encoded))


class DigitMaps(nn.Module):
    """The maps of a classifier of digits, one at each resolution."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*classifier.children())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps."""
        maps: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, nn.Flatten):
                break
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
        return tuple(maps)


class InceptionMaps(nn.Module):
    """The 2048 features of torchvision's Inception v3; images are resized to 299 pixels.

    The weights are torchvision's. Published FIDs use other weights and are not comparable.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torchvision.models import inception_v3

        net = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=False)
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        net.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.net = net.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, 2048]``."""
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True)
        return self.net(x)


class Exported(nn.Module):
    """A module of torch.export; its training or eval mode was fixed when it was exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> Exported:
        """Leave the module's mode as it is."""
        return self

    def forward(self, x: Tensor) -> Any:
        """Return what the module returns."""
        return self.module(x)


def hub_weights(name: str) -> Path:
    """Return the path of a torchvision weight file in torch's cache; nothing is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"The weights {name} are not in {path.parent}. Copy the file there, or let torchvision "
            "download it on a machine with a network. The feature nets `unet` and `digits` need no "
            "such file."
        )
    return path
