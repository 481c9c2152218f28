"""The noise-prediction error on a few samples, which shows a wrong architecture or schedule.

    e(a) = mean (epsilon(sqrt(a) x_0 + sqrt(1 - a) n, t) - n)^2,      t where alpha_bar_t is a

A network with wrong heads, attention order or noise schedule runs without an exception, but its
error is larger. With images x_0 the error is measured at levels a from little noise to much. The
levels are fixed, and the schedule turns them into times. Fixed times would favour schedules with
more noise: any network predicts strong noise better.

Without images the error is measured on pure noise at the last time. It depends on heads and
attention order, but not on the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.hspace import HSpaceUNet

LEVELS = (0.98, 0.9, 0.7, 0.4, 0.15, 0.03)  # a, the share of the image in x_t's variance
AT_ONCE = 8  # samples whose activations are there together


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """The samples that all networks are compared on.

    Attributes:
        noise: n, ``[N, C, H, W]``.
        images: x_0 in [-1, 1], ``[N, C, H, W]``, or None.
    """

    noise: Tensor
    images: Tensor | None

    @classmethod
    def of_images(cls, images: Tensor) -> Probe:
        """Return a probe of images ``[N, C, H, W]``; the noise is always the same."""
        return cls(_noise(images.shape), images)

    @classmethod
    def of_noise(cls, shape: tuple[int, int, int], *, n: int = 8) -> Probe:
        """Return a probe without images, for networks of images shaped ``(C, H, W)``."""
        return cls(_noise((n, *shape)), None)

    def inputs(self) -> tuple[Tensor, ...]:
        """Return x_t of all samples, at each of the levels."""
        if self.images is None:
            return (self.noise,)
        return tuple(a**0.5 * self.images + (1 - a) ** 0.5 * self.noise for a in LEVELS)

    def times(self, schedule: NoiseSchedule) -> tuple[int, ...]:
        """Return the times at which a schedule has these levels, or is nearest to them."""
        if self.images is None:
            return (schedule.num_train_steps - 1,)
        return tuple(int((schedule.alpha_bars - a).abs().argmin()) for a in LEVELS)


def noise_error(unet: HSpaceUNet, schedule: NoiseSchedule, probe: Probe) -> Tensor:
    """Return the error of each sample, the mean over the probe's levels, ``[N]`` on the CPU.

    Args:
        unet: The network, in eval mode. A class-conditional network gets its classes in turn, which
            is equally wrong for all candidates.
        schedule: The noise schedule to assume.
        probe: The samples. Each sample costs one prediction at each level.
    """
    errors = []
    for x, t in zip(probe.inputs(), probe.times(schedule), strict=True):
        parts = [_predicted(unet, part, t) for part in x.split(AT_ONCE)]
        errors.append((torch.cat(parts) - probe.noise).square().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


def trivial_error(probe: Probe) -> float:
    """Return the error of the best prediction ``epsilon = c x_t``, with one c for each level.

    On pure noise it is 0 by construction, and says nothing.
    """
    n = probe.noise
    errors = [
        float(((x * n).sum() / x.square().sum() * x - n).square().mean()) for x in probe.inputs()
    ]
    return sum(errors) / len(errors)


def _predicted(unet: HSpaceUNet, x: Tensor, t: int) -> Tensor:
    device = next(unet.parameters()).device
    times = torch.full((len(x),), t, device=device)
    with torch.no_grad():
        return unet(x.to(device), times, _classes(unet, len(x)))[:, : x.shape[1]].cpu()


def _noise(shape: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _classes(unet: Any, n: int) -> Tensor | None:
    config = getattr(unet, "config", None)
    if config is None or config.num_classes is None:
        return None
    return torch.arange(n, device=next(unet.parameters()).device) % config.num_classes
