"""EDM's networks as denoisers. Does not import EDM's code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class EDMDenoiser(nn.Module):
    """An EDM network as a denoiser ``D(x, sigma)``; made by `edm_denoiser`."""

    def __init__(self, net: Callable[..., Tensor], class_labels: Tensor | None) -> None:
        super().__init__()
        self.net = net
        self.class_labels = class_labels

    def forward(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **kwargs: object
    ) -> Tensor:
        """Return the denoised x in the dtype of x; sigma is ``[N]`` or one number for all."""
        labels = self.class_labels if class_labels is None else class_labels
        sigma = torch.as_tensor(sigma, device=x.device)
        return self.net(x, sigma, labels, **kwargs).to(x.dtype)


def edm_denoiser(net: Callable[..., Tensor], *, class_labels: Tensor | None = None) -> EDMDenoiser:
    r"""Return an EDM network as the denoiser that `EDMHeun` and `EDMEuler` take.

    The classes ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` and ``iDDPMPrecond`` of EDM's code are
    denoisers already, ``net(x, sigma, class_labels) -> D``: they convert to float32, scale, and
    broadcast sigma to the shape of x. The adapter converts D from float32 to the dtype of the
    states, because EDM samples in float64 so that small updates are not rounded away.

    The caller does two things. Use noise levels that the network knows:
    ``net.round_sigma(torch.tensor(karras_sigmas(18)))``. To train a pickled network, whose weights
    are frozen, call ``net.requires_grad_()``.

    Args:
        net: ``net(x, sigma, class_labels, **kwargs) -> D``, sigma ``[N]``.
        class_labels: ``[N, label_dim]`` or None. To give labels to each call of the chain, pass
            them there: ``chain(x, class_labels)``.

    Returns:
        A module, so that a chain finds the network's parameters.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        Table 1.

    Example:
        >>> from chainograd.samplers import EDMHeun, karras_sigmas
        >>> net = lambda x, sigma, class_labels: x.float() / (1 + sigma.reshape(-1, 1).float() ** 2)
        >>> step = EDMHeun(edm_denoiser(net), karras_sigmas(18))
        >>> step(80 * torch.ones(2, 3, dtype=torch.float64), 0).dtype
        torch.float64
    """
    return EDMDenoiser(net, class_labels)
