"""Pairs that several measures of a subject look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from hdiscovery.directions.subject import Pair, Progress, Subject, pairs

KEPT_BYTES = 2**30


@dataclass(slots=True, eq=False)
class KeptPairs:
    """The pairs of a subject and a seed.

    RCA's 5,000 are the first ones of FID's 10,000, and a fresh reconstructor learns from the same.
    They are kept on the CPU as far as `KEPT_BYTES` reach; beyond, they are made again.

    Attributes:
        subject: Whose directions.
        seed: Of the pairs.
        batch_size: Pairs at once.
        kept: Batches so far, in order.
    """

    subject: Subject
    seed: int
    batch_size: int
    kept: list[Pair] = field(default_factory=list)

    def first(self, count: int, progress: Progress = iter) -> Iterator[Pair]:
        """Yield the first ``count`` pairs in batches, on the subject's device.

        Args:
            count: Pairs in all.
            progress: Wraps the loop over those that have to be made.
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


def _part(pair: Pair, count: int, device: torch.device | str) -> Pair:
    x_0, shifted, k, s = (column[:count].to(device) for column in pair)
    return x_0, shifted, k, s


def _bytes(pair: Pair) -> int:
    return sum(column.nbytes for column in pair)
