"""smalldiffusion's sampler as a pure step. Does not import smalldiffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from chainograd.adapters.slicing import checked_index, checked_sigmas
from chainograd.samplers.dpm_solver import MultistepState
from chainograd.samplers.noise import Noise


class SmallDiffusionStep(nn.Module):
    """Step i of smalldiffusion's ``samples``; made by `smalldiffusion_step`."""

    def __init__(
        self,
        model: nn.Module,
        sigmas: Tensor,
        gam: float,
        mu: float,
        cfg_scale: float,
        cond: Tensor | None,
        noise: Noise | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.sigmas = sigmas
        self.gam = gam
        self.mu = mu
        self.cfg_scale = cfg_scale
        self.cond = cond
        self.noise = noise

    @property
    def num_steps(self) -> int:
        """Number of steps, one less than the number of sigmas."""
        return len(self.sigmas) - 1

    def forward(
        self, state: tuple[Tensor, Tensor], i: int, cond: Tensor | None = None
    ) -> MultistepState:
        """Return the state at ``sigmas[i + 1]``; a ``cond`` here replaces the step's own."""
        i = checked_index(i, self.num_steps)
        x, eps_prev = state
        sig, sig_prev = self.sigmas[i], self.sigmas[i + 1]
        model: Any = self.model
        cond = self.cond if cond is None else cond
        eps = model.predict_eps_cfg(x, sig.to(x), cond, self.cfg_scale)
        eps_av = self.gam * eps + (1 - self.gam) * eps_prev if i else eps
        sig_p = (sig_prev / sig**self.mu) ** (1 / (1 - self.mu))
        x_next = x - (sig - sig_p) * eps_av
        # Skipped if mu = 0: eta is 0, and the root's derivative there would give learned sigmas the
        # gradient NaN.
        if self.mu:
            eta = (sig_prev**2 - sig_p**2).sqrt()
            z = model.rand_input(len(x)).to(x) if self.noise is None else self.noise(x, i)
            x_next = x_next + eta * z
        return MultistepState(x_next, eps)


def smalldiffusion_step(
    model: nn.Module,
    sigmas: Tensor,
    *,
    gam: float = 1.0,
    mu: float = 0.0,
    cfg_scale: float = 0.0,
    cond: Tensor | None = None,
    noise: Noise | None = None,
) -> SmallDiffusionStep:
    r"""Return smalldiffusion's ``samples`` as a pure step ``(x, eps_prev), i -> (x, eps)``.

    From sigma to its successor sigma', with eps the predicted noise at x:

        eps_av  = gam eps + (1 - gam) eps_prev             (eps in the first step)
        sigma_p = (sigma' / sigma^mu)^(1 / (1 - mu))
        x'      = x - (sigma - sigma_p) eps_av + sqrt(sigma'^2 - sigma_p^2) z

    The chain starts from `MultistepState.start`, and its result is the state's ``x``. The result
    equals that of ``samples`` in every bit. ``samples`` also puts the model in eval mode, which is
    up to the caller here.

    Args:
        model: A model of smalldiffusion, with ``predict_eps_cfg`` and ``rand_input``.
        sigmas: ``[M + 1]`` falling noise levels, as from ``schedule.sample_sigmas(M)``. They get
            gradients if they require them.
        gam: Weight of the newest prediction: 1 is DDIM or DDPM, 2 the accelerated sampler.
        mu: In [0, 1): 0 adds no noise, 0.5 is DDPM.
        cfg_scale: Strength of classifier-free guidance; 0 turns guidance off.
        cond: ``[N, ...]`` conditioning. To make it an argument of the chain, pass it to the call:
            ``chain(state, cond=c)``.
        noise: ``noise(x, i) -> z``. None means the model's ``rand_input``, as in ``samples``; it
            draws from torch's global stream, which a chain replays.

    Raises:
        ValueError: If ``mu`` or ``sigmas`` is out of range.
        TypeError: If the model lacks one of these methods.

    References:
        Permenter and Yuan (2024), Interpreting and Improving Diffusion Models from an Optimization
        Perspective.

    Example:
        >>> import torch
        >>> from chainograd import CheckpointedChain
        >>> from chainograd.samplers import MultistepState
        >>> class Toy(nn.Module):
        ...     def rand_input(self, batchsize):
        ...         return torch.randn(batchsize, 1)
        ...     def predict_eps_cfg(self, x, sigma, cond, cfg_scale):
        ...         return x / (1 + sigma)
        >>> step = smalldiffusion_step(Toy(), torch.tensor([9.0, 3.0, 1.0]), gam=2)
        >>> chain = CheckpointedChain(step, step.num_steps)
        >>> chain(MultistepState.start(torch.full((1, 1), 10.0))).x
        tensor([[2.]])
    """
    for name in ("predict_eps_cfg", "rand_input"):
        if not callable(getattr(model, name, None)):
            raise TypeError(
                f"`model` must have `{name}`, as smalldiffusion's models do, but "
                f"{type(model).__name__} has no such method. Derive it from "
                "`smalldiffusion.ModelMixin`, or use a sampler of `chainograd.samplers`."
            )
    if not 0 <= mu < 1:
        raise ValueError(f"`mu` must lie in [0, 1), got {mu}. 0 is DDIM, 0.5 is DDPM.")
    return SmallDiffusionStep(model, checked_sigmas(sigmas), gam, mu, cfg_scale, cond, noise)
