"""Algorithm 1 of the paper: one training step, from top to bottom. The numbers are its lines.

Where the listing is unclear or wrong, the code does what is sound:

* k and s are drawn for each sample, not once for a batch: R's batch norm would reveal one k.
* D returns logits. Its gradients are off in step 2: line 29 would add L_G's gradient to psi.
* The loop over nodes (18-35) is the backward pass of `chainograd.CheckpointedChain`. It keeps the
  nodes of lines 7-14, and ``backward()`` runs each sampling step again, from the last to the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.training.optimizers import clear, optimizers, step_directions
from hdiscovery.training.weighted_l1 import weighted_l1
from hdiscovery.training.world import World


class Algorithm1:
    """Updates phi (shift block), omega (R) and psi (D) of a run through its whole sampler.

    Each of the two steps has one backward pass and, among several processes, one reduction of
    gradients.

    Args:
        networks: The networks, the same in every process.
        world: The processes that train together.
    """

    def __init__(self, networks: RunNetworks, world: World) -> None:
        self.networks, self.world = networks, world
        self.optimizers = optimizers(networks)
        self.D = world.wrap(networks.D)
        self.objective = world.wrap(Objective(networks))

    def step(
        self, x_T: Tensor, k: Tensor, s: Tensor, x_0: Tensor | None = None
    ) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
        """Do one step; return its record, averaged over the processes, and x_0 and x~_0.

        Args:
            x_T: Noise, ``[N, C, H, W]``.
            k: Directions, ``[N]``.
            s: Shifts, ``[N]``.
            x_0: The unshifted sample of ``x_T``, if it is known.

        Raises:
            FloatingPointError: If a loss is not finite. If it is a loss of step 2, D was updated.
        """
        with torch.no_grad():
            real: Tensor = self.networks.real(x_T) if x_0 is None else x_0  # 4-6
        shifted = self.networks.shifted(x_T, k, s)  # 7-14
        record = self.update_discriminator(real, shifted.detach())  # 15-16
        record |= self.update_directions(real, shifted, k, s)  # 17-36
        return record, (real, shifted.detach())

    def update_discriminator(self, x_0: Tensor, shifted: Tensor) -> dict[str, float]:
        """Step 1: update D, so that it tells shifted samples from others."""
        self.networks.D.requires_grad_(True)
        clear(self.optimizers, "psi")
        real, fake = self.D(torch.cat([x_0, shifted])).chunk(2)
        L_D = bce(real, 1) + bce(fake, 0)  # 15
        right = torch.cat([real > 0, fake < 0]).float().mean()  # 1/2 in equilibrium
        record = self.world.average_finite({"L_D": L_D, "accuracy_D": right})
        L_D.backward()
        self.optimizers["psi"].step()  # 16
        return record

    def update_directions(
        self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor
    ) -> dict[str, float]:
        """Step 2: update shift block and R; the chain goes back node by node."""
        self.networks.D.requires_grad_(False)
        clear(self.optimizers, "phi", "heads", "omega")
        terms = self.objective(x_0, shifted, k, s)  # 26-28
        record = self.world.average_finite(terms)
        terms["loss"].backward()  # 18-35
        step_directions(self.optimizers, self.networks.shift_block)  # 36
        self.optimizers["omega"].step()
        return record


class Objective(nn.Module):
    """Lines 26-28: the loss of shift block and R.

        L = lambda_G L_G + lambda_1 CE(k_hat, k) + lambda_2 |s_hat - s| + lambda_l1 L_l1

    The shift block is a part of it because distributed training averages the gradients of one
    module's parameters.
    """

    def __init__(self, networks: RunNetworks) -> None:
        super().__init__()
        self.weights = networks.config.loss
        self.shift_block, self.R = networks.shift_block, networks.R
        self._frozen = (networks.D,)  # in a tuple, so that its parameters are not the module's

    def forward(self, x_0: Tensor, shifted: Tensor, k: Tensor, s: Tensor) -> dict[str, Tensor]:
        """Return the loss with its terms, and the accuracy of R."""
        (D,), weights = self._frozen, self.weights
        logits, s_hat = self.R(x_0, shifted)
        L_G = bce(D(shifted), 1)
        L_k, L_s = F.cross_entropy(logits, k), F.l1_loss(s_hat, s)
        L_l1 = weighted_l1(x_0, shifted, s, gamma=weights.l1_gamma)
        loss = weights.lambda_G * L_G + weights.lambda_1 * L_k + weights.lambda_2 * L_s
        loss = loss + weights.lambda_l1 * L_l1
        right = (logits.argmax(1) == k).float().mean()
        return {"L_G": L_G, "cross_entropy": L_k, "shift_error": L_s, "l1": L_l1, "loss": loss,
                "accuracy": right}  # fmt: skip


def bce(logits: Tensor, target: float) -> Tensor:
    """Return the paper's ``BCELoss(D(x), target)``, of logits; "real" (1) means: not shifted."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
