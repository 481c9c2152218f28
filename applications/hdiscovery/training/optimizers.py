"""Adam for the three networks, dense or lazy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer, SparseAdam

from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.networks.shift_block import ShiftBlock

# Note [Dense or lazy]
# The K heads of the shift block are one tensor. In a step that draws few directions, most rows of
# the tensor get no gradient. Dense Adam still moves these rows, by momentum: so did Adam in the
# paper's time, when an untouched gradient was a tensor of zeros. Lazy Adam leaves them where they
# are, as Adam does today with K separate convolutions. It counts steps for the tensor, not for each
# row.


def optimizers(networks: RunNetworks) -> dict[str, Optimizer]:
    """Return the optimizers by the letters of their parameters.

    phi is the shift block (without its heads, if those are optimized lazily), omega the
    reconstructor, psi the discriminator.
    """
    config, block = networks.config, networks.shift_block
    heads = block.heads if config.optimizer.adam == "lazy" else []
    rest = [p for p in block.parameters() if not any(p is head for head in heads)]
    found: dict[str, Optimizer] = {
        "phi": Adam(rest, config.rates["phi"]),
        "omega": Adam(networks.R.parameters(), config.rates["omega"]),
        "psi": Adam(networks.D.parameters(), config.rates["psi"]),
    }
    if heads:
        found["heads"] = SparseAdam(heads, config.rates["heads"])
    return found


def set_rates(found: dict[str, Optimizer], rates: dict[str, float]) -> None:
    """Set the optimizers' learning rates, by their letters."""
    for name, optimizer in found.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name]


def clear(found: dict[str, Optimizer], *letters: str) -> None:
    """Clear the gradients of some optimizers; dense heads have no optimizer of their own."""
    for letter in letters:
        if letter in found:
            found[letter].zero_grad()


def step_directions(found: dict[str, Optimizer], block: ShiftBlock) -> None:
    """Update the shift block; of lazily optimized heads only the rows that were drawn."""
    if "heads" in found:
        for head in block.heads:
            keep_drawn_rows(head)
        found["heads"].step()
    found["phi"].step()


def keep_drawn_rows(head: Tensor) -> None:
    """Make the gradient of a head sparse: it keeps the rows of the directions that were drawn."""
    assert head.grad is not None
    rows = head.grad.flatten(1).any(1).nonzero().squeeze(1)
    head.grad = torch.sparse_coo_tensor(
        rows[None], head.grad[rows], head.shape, is_coalesced=True, check_invariants=False
    )
