"""Noise as a value: what a step adds depends on a seed and the step's index, on nothing else."""

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

    It can be asked for in any order and as often as one likes, and it moves no random stream of
    torch, numpy or Python. Seed and index are the key of a counter-based generator, so no two
    pairs of them share a stream.

    Numbers are drawn in float32 on the CPU and then converted and moved: every dtype gets the
    same values up to rounding, and a GPU the numbers of the CPU. The price is 25 ns a number
    and the copy, against next to nothing for a GPU's own generator.

    All samples of a batch get different noise, but the batch has to come as a whole: with
    ``micro_batch`` every slice would get the same. A chain refuses that, unless its steps draw from
    the global stream as well (dropout), when it cannot tell. For slices, take the global stream:
    ``noise=lambda x, i: torch.randn_like(x)``, which the chain replays.

    Args:
        seed: Any integer; its last 64 bits count.

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
                f"`seed` must be an integer, got {self.seed!r}. For noise from a stream of your "
                "own, pass any function `noise(x, i)` that gives the same z for the same i."
            )

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """Return z of the shape, dtype and device of ``x``.

        Args:
            x: Any tensor; its values do not matter.
            i: Index of the step, at least 0.
        """
        # Not a torch.Generator: on the CPU it tells apart 2^32 seeds only, so that a run of a
        # hundred thousand draws would see some noise twice.
        key = np.array([int(self.seed) % 2**64, i], dtype=np.uint64)
        stream = np.random.Generator(np.random.Philox(key=key))
        z = stream.standard_normal(tuple(x.shape), dtype=np.float32)
        return torch.as_tensor(z).to(x.device, x.dtype)
