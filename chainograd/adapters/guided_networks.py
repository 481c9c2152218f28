"""guided-diffusion's networks in `DDIM`. Does not import guided-diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chainograd.adapters.predictions import Prediction, epsilon_from
from chainograd.samplers.ddim import DDIM
from chainograd.samplers.noise import Noise
from chainograd.samplers.schedule import NoiseSchedule

# guided-diffusion's names of what a network predicts. `PREVIOUS_X` is not here: it depends on the
# grid, so no noise prediction follows from it.
_PREDICTIONS: dict[str, Prediction] = {"EPSILON": "epsilon", "START_X": "sample"}


class IndexedModel(nn.Module):
    """A guided-diffusion network whose time is an index of a spaced schedule.

    Attributes:
        times: The time in the network's own schedule at each index.
        scale: Factor of the times that the network takes as floats; None leaves them integers.
    """

    def __init__(
        self, model: Callable[..., Tensor], times: Sequence[int], scale: float | None
    ) -> None:
        super().__init__()
        self.model = model
        self.times = tuple(times)
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """Return the prediction, without a predicted variance."""
        times = torch.tensor(self.times, device=t.device)[t]
        if self.scale is not None:
            times = times.float() * self.scale
        return self.model(x, times, **kwargs)[:, : x.shape[1]]


def guided_diffusion_ddim(
    diffusion: Any,
    model: Callable[..., Tensor],
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    clamp: float | None = None,
) -> DDIM:
    r"""Return `DDIM` for a network of guided-diffusion, on the grid of its diffusion.

    The step equals ``ddim_sample`` with ``clip_denoised=False`` up to about 1e-6, because its
    tables are float64. Its noise is a function of the step's index. A learned variance (the second
    half of the network's channels) is dropped, because DDIM does not use it.

    Args:
        diffusion: A ``GaussianDiffusion`` or ``SpacedDiffusion``.
        model: ``model(x, t, **kwargs)``, as guided-diffusion takes it.
        eta: As in `DDIM`.
        noise: As in `DDIM`.
        clamp: As in `DDIM`. (guided-diffusion computes the noise anew after clipping; for that,
            use `guided_diffusion_step`.)

    Raises:
        ValueError: If the network predicts the next state, or an option is out of range.

    References:
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models, section 4.

    Example:
        >>> from types import SimpleNamespace as Toy
        >>> toy = Toy(betas=[0.1, 0.2, 0.3], model_mean_type=Toy(name="EPSILON"))
        >>> step = guided_diffusion_ddim(toy, lambda x, t: torch.cat([x, x], 1))
        >>> step.grid, step(torch.ones(1, 3, 2, 2), 0).shape
        ((2, 1, 0, -1), torch.Size([1, 3, 2, 2]))
    """
    predicted = diffusion.model_mean_type.name
    if predicted not in _PREDICTIONS:
        raise ValueError(
            f"`diffusion` has a network that predicts {predicted}, but DDIM needs one of "
            f"{', '.join(_PREDICTIONS)}. Use `guided_diffusion_step`."
        )
    schedule = NoiseSchedule.from_betas(torch.as_tensor(diffusion.betas))
    T = schedule.num_train_steps
    # A spaced diffusion knows the original time of each of its own times.
    times = getattr(diffusion, "timestep_map", range(T))
    scale = None
    if getattr(diffusion, "rescale_timesteps", False):
        scale = 1000.0 / getattr(diffusion, "original_num_steps", T)
    indexed = IndexedModel(model, times, scale)
    epsilon = epsilon_from(indexed, schedule, prediction=_PREDICTIONS[predicted])
    return DDIM(epsilon, schedule, range(T - 1, -2, -1), eta=eta, noise=noise, clamp=clamp)
