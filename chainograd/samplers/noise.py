"""Noise as a function of a seed and of the step's index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[Tensor, int], Tensor]  # noise(x, i) -> z, standard normal of the shape of x


@dataclass(frozen=True, slots=True)
class SeededNoise:
    """Standard normal noise ``noise(x, i) -> z``, a function of the seed and of the index i.

    Calls may come in any order and any number, and move no random stream of torch, numpy or Python.
    Seed and index are the key of a counter-based generator, so different pairs never share a
    stream.

    Numbers are drawn in float32 on the CPU, then converted and moved. So every dtype gets the same
    values up to rounding, and a GPU gets the numbers of the CPU. The cost is 25 ns a number and the
    copy; a GPU's own generator costs almost nothing.

    All samples of a batch get different noise, but only if the batch comes as a whole: with
    ``micro_batch``, every slice would get the same noise. A chain refuses this, except if its steps
    also draw from the global stream (dropout), where the chain cannot detect it. With slices, use
    the global stream, which the chain replays: ``noise=lambda x, i: torch.randn_like(x)``.

    Args:
        seed: Any integer; only its last 64 bits are used.

    Raises:
        TypeError: If ``seed`` is not an integer.

    References:
        Salmon et al. (2011), Parallel Random Numbers: As Easy as 1, 2, 3: Philox.

    Example:
        >>> noise, x = SeededNoise(0), torch.zeros(2, 3)
        >>> torch.equal(noise(x, 4), noise(x, 4)), torch.equal(noise(x, 4), noise(x, 5))
        (True, False)
    """

    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral):
            raise TypeError(
                f"`seed` must be an integer, got {self.seed!r}. For noise from another source, "
                "pass any function `noise(x, i)` that returns the same z for the same i."
            )

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """Return z of the shape, dtype and device of ``x``.

        Args:
            x: Any tensor; its values are not used.
            i: Index of the step, at least 0.
        """
        # Not a torch.Generator: on the CPU it has only 2^32 different seeds, so among a hundred
        # thousand draws some would be equal.
        key = np.array([int(self.seed) % 2**64, i], dtype=np.uint64)
        stream = np.random.Generator(np.random.Philox(key=key))
        z = stream.standard_normal(tuple(x.shape), dtype=np.float32)
        return torch.as_tensor(z).to(x.device, x.dtype)
