"""How well a network predicts noise: whether it is what it is taken for, told from a few samples.

    e(a) = mean (epsilon(sqrt(a) x_0 + sqrt(1 - a) n, t) - n)^2,      t where alpha_bar_t is a

A network loaded with a wrong answer (heads, attention order, noise schedule) runs without
complaint, and its error is larger. With images x_0 that is seen at levels a from little noise to
much. The levels are fixed and t follows from the schedule, not the other way round: at the same
times another schedule has more noise, of which any network knows more.

Without images the error is that on noise alone, at the last time: that tells something of heads
and order, and nothing of the schedule.
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
    """The samples that networks are compared on, the same ones for all.

    Attributes:
        noise: n, ``[N, C, H, W]``.
        images: x_0 in [-1, 1], ``[N, C, H, W]``; None where there are none.
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
        unet: In eval mode. A class-conditional one is given its classes in turn, which is as wrong
            for one as for another.
        schedule: The noise schedule that it is taken to have.
        probe: The samples. Costs a prediction for each of them and of the levels.
    """
    errors = []
    for x, t in zip(probe.inputs(), probe.times(schedule), strict=True):
        parts = [_predicted(unet, part, t) for part in x.split(AT_ONCE)]
        errors.append((torch.cat(parts) - probe.noise).square().flatten(1).mean(1))
    return torch.stack(errors).mean(0)


def trivial_error(probe: Probe) -> float:
    """Return the error of the best that needs no network, ``epsilon = c x_t``, c of each level.

    On noise alone it is 0 by nature, and no measure for anything.
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
