"""Reruns outside of the vmap that cotangents are batched by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def outside_vmap() -> Iterator[None]:
    """Let steps that run again draw random numbers while cotangents are a batch of gradients.

    Inside vmap torch refuses to draw, because a draw might be meant for each row. A step's draw is
    the same for all rows, since the step ran before.
    """
    levels = torch._C._vmapmode_increment_nesting()
    for _ in range(levels):
        torch._C._vmapmode_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(levels - 1):
            torch._C._vmapmode_increment_nesting()
