"""A conditional network under one condition, which is then a network like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hdiscovery.dm.hspace import Encoded, HSpaceUNet
from hdiscovery.dm.model import DiffusionModel

Condition = int | Tensor | Mapping[str, Tensor]


class Conditioned(HSpaceUNet):
    """A UNet whose condition is the same for all samples of a run, and not asked for.

    Args:
        unet: The network.
        condition: A class index; a tensor ``[1, …]``, such as a text's embedding; or a mapping of
            such tensors by name, where the network takes several.

    Raises:
        ValueError: If a tensor's first length is not 1.
    """

    def __init__(self, unet: HSpaceUNet, condition: Condition) -> None:
        super().__init__()
        self.unet = unet
        self.image_shape, self.h_shape = unet.image_shape, unet.h_shape
        self.embedding_channels = unet.embedding_channels
        parts = condition if isinstance(condition, Mapping) else {"": condition}
        self.names = tuple(parts)
        for j, (name, part) in enumerate(parts.items()):
            tensor = torch.tensor([part]) if isinstance(part, int) else part.detach()
            if tensor.ndim == 0 or len(tensor) != 1:
                raise ValueError(
                    f"`condition` {name} holds a tensor of shape {tuple(tensor.shape)}, expected "
                    "[1, …]: one condition for all samples of a run."
                )
            self.register_buffer(f"part_{j}", tensor)  # so that it follows the network's device

    @property
    def condition(self) -> Condition:
        """The condition, as it was given."""
        parts: dict[str, Any] = {n: getattr(self, f"part_{j}") for j, n in enumerate(self.names)}
        return parts[""] if self.names == ("",) else parts

    def encode(self, x: Tensor, t: Tensor, y: Any = None) -> Encoded:
        """Return what the encoder makes of ``x`` at ``t`` under the condition; y stays None."""
        if y is not None:
            raise ValueError("`y` is fixed by this model's `condition`, and cannot be given.")
        return self.unet.encode(x, t, _for_batch(self.condition, len(x)))

    def middle(self, encoded: Encoded) -> Tensor:
        """Return ``h``, the point in h-space."""
        return self.unet.middle(encoded)

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the network's output for ``h``."""
        return self.unet.decode(h, encoded)


def under(dm: DiffusionModel, condition: Condition) -> DiffusionModel:
    """Return a conditional diffusion model under one condition, such as one class of ImageNet.

    Args:
        dm: The diffusion model. Its network is shared, not copied.
        condition: As for `Conditioned`.

    Example:
        >>> from chainograd.samplers import NoiseSchedule
        >>> from hdiscovery.dm.adm_config import UNetConfig
        >>> from hdiscovery.dm.adm_unet import ADMUNet
        >>> unet = ADMUNet(UNetConfig(image_size=16, num_channels=32, channel_mult=(1, 1),
        ...                           num_classes=10))
        >>> dm = under(DiffusionModel(unet, NoiseSchedule.linear(), "toy"), 3)
        >>> dm.unet(torch.zeros(2, 3, 16, 16), torch.tensor([999, 0])).shape
        torch.Size([2, 3, 16, 16])
    """
    return replace(dm, unet=Conditioned(dm.unet, condition).eval())


def _for_batch(condition: Any, n: int) -> Any:
    if isinstance(condition, Mapping):
        return {name: _for_batch(part, n) for name, part in condition.items()}
    return condition.expand(n, *condition.shape[1:])
