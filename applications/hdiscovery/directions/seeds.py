"""Random numbers of a measure's own: the caller's stream stays where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block with torch's global streams seeded, and put them back afterwards.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded(1):
        ...     _ = torch.rand(3)
        >>> bool((torch.get_rng_state() == state).all())
        True
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
