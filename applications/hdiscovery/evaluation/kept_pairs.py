"""Pairs of a sample and its shifted version, kept because sampling them is expensive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.pairs import Pair, Progress, pairs

KEPT_BYTES = 2**30


@dataclass(slots=True, eq=False)
class KeptPairs:
    """The pairs of a subject and a seed, shared by several measures.

    RCA's pairs are the first of FID's, and a fresh reconstructor learns from the same pairs. Up to
    `KEPT_BYTES` of them are kept on the CPU; the others are drawn again each time.

    Attributes:
        subject: The subject whose directions shift the samples.
        seed: Seed of the pairs.
        batch_size: Pairs at once.
        kept: Batches kept so far, in order.
    """

    subject: DirectionSet
    seed: int
    batch_size: int
    kept: list[Pair] = field(default_factory=list)

    def first(self, count: int, progress: Progress = iter) -> Iterator[Pair]:
        """Yield the first ``count`` pairs in batches, on the subject's device.

        Args:
            count: Number of pairs.
            progress: Wraps the loop over batches that have to be drawn.
        """
        device, seen = self.subject.device, 0
        for pair in list(self.kept):
            if seen < count:
                yield _part(pair, count - seen, device)
            seen += len(pair[0])
        if seen >= count:
            return
        for pair in pairs(self.subject, count - seen, seed=self.seed, first=seen,
                          batch_size=self.batch_size, progress=progress):  # fmt: skip
            if sum(map(_bytes, self.kept)) + _bytes(pair) <= KEPT_BYTES and seen == self._size:
                self.kept.append(_part(pair, len(pair[0]), "cpu"))
            seen += len(pair[0])
            yield pair

    @property
    def _size(self) -> int:
        return sum(len(pair[0]) for pair in self.kept)


@dataclass(frozen=True, slots=True, eq=False)
class PairBank:
    """Pairs to train on, drawn once and used many times.

    Attributes:
        x_0: ``[N, C, H, W]``, on the CPU.
        shifted: ``[N, C, H, W]``.
        k: ``[N]``.
        s: ``[N]``.
    """

    x_0: Tensor
    shifted: Tensor
    k: Tensor
    s: Tensor

    @classmethod
    def of(
        cls, subject: DirectionSet, count: int, *, seed: int, batch_size: int = 64,
        progress: Progress = iter,
    ) -> PairBank:  # fmt: skip
        """Draw ``count`` pairs as in training; memory holds ``2 count`` images."""
        return cls.gathered(
            pairs(subject, count, seed=seed, batch_size=batch_size, progress=progress)
        )

    @classmethod
    def gathered(cls, drawn: Iterable[Pair]) -> PairBank:
        """Return a bank of all pairs in the given batches."""
        columns = zip(*([part.cpu() for part in pair] for pair in drawn), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def __len__(self) -> int:
        return len(self.k)

    def batch(self, chosen: Tensor, device: torch.device) -> Pair:
        """Return the pairs at these indices, on a device."""
        x_0, shifted, k, s = (
            c[chosen].to(device) for c in (self.x_0, self.shifted, self.k, self.s)
        )
        return x_0, shifted, k, s

    def split(self, first: int) -> tuple[PairBank, PairBank]:
        """Return a bank of the first ``first`` pairs and a bank of the others."""
        columns = (self.x_0, self.shifted, self.k, self.s)
        return PairBank(*(c[:first] for c in columns)), PairBank(*(c[first:] for c in columns))

    def batches(self, size: int, device: torch.device) -> Iterator[Pair]:
        """Yield all pairs in order."""
        for chosen in torch.arange(len(self)).split(size):
            yield self.batch(chosen, device)


def _part(pair: Pair, count: int, device: torch.device | str) -> Pair:
    x_0, shifted, k, s = (column[:count].to(device) for column in pair)
    return x_0, shifted, k, s


def _bytes(pair: Pair) -> int:
    return sum(column.nbytes for column in pair)
