"""What the three networks are trained for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.directions.discovery import Discovery


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return ``L_D = -log D(x_0) - log(1 - D(x~_0))``, of logits, averaged over the batch.

    Real means: not shifted. At the equilibrium it is 2 ln 2.
    """
    L_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return L_real + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def weighted_l1(x_0: Tensor, shifted: Tensor, s: Tensor, *, gamma: float) -> Tensor:
    """Return ``gamma / (gamma + |s|) |x~_0 - x_0|_1``, averaged over pixels and the batch.

    What the paper compares the discriminator with (section 5.6): images should stay near where
    they were, less so for larger shifts.
    """
    distance = (shifted - x_0).abs().flatten(1).mean(1)
    return (gamma / (gamma + s.abs()) * distance).mean()


class Objective(nn.Module):
    """Step 2 of Algorithm 1: what shift block and reconstructor are trained for.

        L = lambda_G L_G + lambda_1 CE(k_hat, k) + lambda_2 |s_hat - s| + lambda_l1 L_l1

    The shift block is a part of it although it has done its work when this is called: distributed
    training averages the gradients of all parameters of one module.

    Args:
        discovery: The networks. D is seen and not trained.
    """

    def __init__(self, discovery: Discovery) -> None:
        super().__init__()
        self.config = discovery.config
        self.shift_block, self.R = discovery.shift_block, discovery.R
        self._seen = (discovery.D,)  # in a tuple, so that its parameters are not ours

    def forward(self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor) -> dict[str, Tensor]:
        """Return the loss with its terms, and the accuracy of R."""
        (D,), config = self._seen, self.config
        logits, s_hat = self.R(x_0, shifted)
        judged = D(shifted)
        terms = {
            "L_G": F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged)),
            "cross_entropy": F.cross_entropy(logits, k),
            "shift_error": F.l1_loss(s_hat, s),
            "l1": weighted_l1(x_0, shifted, s, gamma=config.loss.l1_gamma),
        }
        loss = (
            config.loss.lambda_G * terms["L_G"]
            + config.loss.lambda_1 * terms["cross_entropy"]
            + config.loss.lambda_2 * terms["shift_error"]
            + config.loss.lambda_l1 * terms["l1"]
        )
        accuracy = (logits.argmax(1) == k).float().mean()
        return {**terms, "loss": loss, "accuracy": accuracy}

    def reconstruction(self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor) -> Tensor:
        """Return R's part of the loss alone."""
        logits, s_hat = self.R(x_0, shifted)
        L_k, L_s = F.cross_entropy(logits, k), F.l1_loss(s_hat, s)
        return self.config.loss.lambda_1 * L_k + self.config.loss.lambda_2 * L_s
