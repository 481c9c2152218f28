"""h-space: where a UNet is at its deepest, and the one way in which the rest of us see a UNet."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Encoded(NamedTuple):
    """What the encoder leaves: its deepest features, the skips, the time embedding.

    Attributes:
        features: ``[N, C, H, W]``, what the middle block is given.
        skips: What the decoder is given besides h, first to last.
        embedding: ``[N, E]``, of the time (and of the class, where there is one).
        context: Whatever else a backbone needs, ``[N, …]`` each, such as a text's embedding.
    """

    features: Tensor
    skips: tuple[Tensor, ...]
    embedding: Tensor
    context: tuple[Tensor, ...] = ()

    def twice(self) -> Encoded:
        """Return the same for a batch that holds every sample twice, one copy after the other."""

        def doubled(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.cat([tensor, tensor]) for tensor in tensors)

        features, embedding = doubled((self.features, self.embedding))
        return Encoded(features, doubled(self.skips), embedding, doubled(self.context))


class HSpaceUNet(nn.Module):
    """A noise-prediction UNet, split where h-space is.

    ``forward(x, t)`` is ``decode(middle(encode(x, t)))``. The three parts are public because
    h-space is what lies between the last two: encode once, decode with and without a shift.

    Attributes:
        image_shape: ``(C, H, W)`` of an image.
        h_shape: ``(C, H, W)`` of a point in h-space.
        embedding_channels: Width E of the time embedding.

    Shapes:
        x ``[N, C, H, W]``, t ``[N]`` (0-based training indices) -> ``[N, C or more, H, W]``: the
        noise is the first C channels.
    """

    image_shape: tuple[int, int, int]
    h_shape: tuple[int, int, int]
    embedding_channels: int

    def encode(self, x: Tensor, t: Tensor, y: Any = None) -> Encoded:
        """Return what the encoder makes of ``x`` at ``t``, under condition y if there is one."""
        raise NotImplementedError

    def middle(self, encoded: Encoded) -> Tensor:
        """Return ``h``, the point in h-space, ``[N, *h_shape]``."""
        raise NotImplementedError

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the network's output for ``h``, which may be shifted; the skips are not."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """Return the predicted noise, and what else the network predicts, in its channels."""
        encoded = self.encode(x, t, y)
        return self.decode(self.middle(encoded), encoded)
