"""Leaves in a step's graph that the chain does not know: the step's own, or captured unseen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from chainograd.errors import CapturedTensorError


class UnknownLeaf(NamedTuple):
    """A leaf in a step's graph that the chain does not know.

    Attributes:
        step: The step's index.
        shape: The leaf's shape, for the error.
        leaf: The leaf, as long as somebody holds it.
    """

    step: int
    shape: tuple[int, ...]
    leaf: weakref.ref[Tensor]


def refuse_unknown_leaves(unknown_leaves: Sequence[UnknownLeaf]) -> None:
    """Check that the step made the unknown leaves itself: they are freed with its graph.

    Raises:
        CapturedTensorError: If a leaf is still alive. Then the step has captured it.
    """
    if any(unknown.leaf() is not None for unknown in unknown_leaves):
        gc.collect()  # what the step made may wait in a reference cycle
    for step, shape, leaf in unknown_leaves:
        if leaf() is not None:
            raise CapturedTensorError(
                f"Step {step} uses a tensor of shape {shape} that requires a gradient and that the "
                "chain cannot see. Name it, `CheckpointedChain(…, params=[tensor])`, pass it as an "
                "argument of the chain, or detach it if its gradient is not wanted. (If it began "
                "to require one after the forward pass: call `requires_grad_()` before the chain.)"
            ).in_step(step)
