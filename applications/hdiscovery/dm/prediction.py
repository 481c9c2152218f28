"""Networks that predict v or x_0, wrapped as networks that predict the noise."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.hspace import Encoded, HSpaceUNet

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class PredictsNoise(HSpaceUNet):
    """A UNet that predicts v or x_0, as one that predicts the noise.

        epsilon = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) x_t                 "v_prediction"
        epsilon = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)           "sample"

    The roots are taken in float64 and rounded once; the sum is in float32 at least. h-space is the
    network's own.

    Args:
        unet: The network.
        schedule: The noise schedule that it was trained with.
        prediction: What it predicts, in the first C channels of its output.

    Shapes:
        As `HSpaceUNet`; the output has C channels.

    References:
        Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models.
    """

    def __init__(
        self, unet: HSpaceUNet, schedule: NoiseSchedule, prediction: PredictionType
    ) -> None:
        super().__init__()
        self.unet, self.prediction = unet, prediction
        self.image_shape, self.h_shape = unet.image_shape, unet.h_shape
        self.embedding_channels = unet.embedding_channels
        self.schedule = schedule

    def encode(self, x: Tensor, t: Tensor, y: Any = None) -> Encoded:
        """Return what the network's encoder makes of ``x``, and ``x`` and the roots beside it."""
        encoded = self.unet.encode(x, t, y)
        dtype = torch.promote_types(x.dtype, torch.float32)
        alpha_bar = self.schedule.alpha_bars.to(x.device)[t][:, None, None, None]
        signal, spread = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
        return encoded._replace(context=(*encoded.context, x, signal, spread))

    def middle(self, encoded: Encoded) -> Tensor:
        """Return the network's own ``h``."""
        return self.unet.middle(_of_network(encoded))

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the noise that the network's output for ``h`` amounts to."""
        x, signal, spread = encoded.context[-3:]
        output = self.unet.decode(h, _of_network(encoded))[:, : x.shape[1]]
        if self.prediction == "v_prediction":
            return signal * output + spread * x
        return (x - signal * output) / spread


def predicts_noise(unet: HSpaceUNet, schedule: NoiseSchedule, prediction: str) -> HSpaceUNet:
    """Return ``unet`` as a network that predicts the noise; ``unet`` itself, if it does.

    Raises:
        ValueError: If the noise cannot be computed from ``prediction``.
    """
    if prediction not in get_args(PredictionType):
        raise ValueError(
            f"`prediction_type` of the diffusers scheduler is {prediction!r}, expected one of "
            f"{', '.join(get_args(PredictionType))}: the noise can be computed from these alone."
        )
    if prediction == "epsilon":
        return unet
    return PredictsNoise(unet, schedule, cast(PredictionType, prediction))


def _of_network(encoded: Encoded) -> Encoded:
    return encoded._replace(context=encoded.context[:-3])
