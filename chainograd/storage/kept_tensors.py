"""Tensors that a step's graph needs in its backward pass, kept where the chain's store says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from chainograd.errors import ChangedTensorError
from chainograd.state import versions


class KeptTensors(Protocol):
    """Some tensors that are kept."""

    def load(self) -> list[Tensor]:
        """Return the tensors, on their devices."""
        ...


class Keeper(Protocol):
    """Keeps tensors.

    Attributes:
        stored_bytes: The bytes of all tensors that were put into a store outside the device.
    """

    stored_bytes: int

    def keep(self, tensors: Sequence[Tensor]) -> KeptTensors:
        """Keep tensors until what is returned is freed."""
        ...

    def saving(self) -> AbstractContextManager[object]:
        """Return a context in which graphs keep here what they save."""
        ...

    def settle(self) -> None:
        """Wait until all tensors are kept."""
        ...


class KeptInPlace:
    """Tensors that are kept as they are, with their versions at that time."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = [tensor.detach() for tensor in tensors]
        self.versions = versions(self.tensors)

    def load(self) -> list[Tensor]:
        """Return the tensors.

        Raises:
            ChangedTensorError: If one of them was changed in place.
        """
        if self.versions != versions(self.tensors):
            raise ChangedTensorError(
                "A tensor that enters a block was changed in place after the block ran, so the "
                "gradient would be wrong. Change a copy of it (`x = x + …` instead of `x += …`)."
            )
        return self.tensors


class InPlace:
    """Keeps tensors as they are."""

    stored_bytes = 0

    def keep(self, tensors: Sequence[Tensor]) -> KeptInPlace:
        """Keep tensors."""
        return KeptInPlace(tensors)

    def saving(self) -> AbstractContextManager[object]:
        """Return a context that leaves it to torch what graphs save."""
        return nullcontext()

    def settle(self) -> None:
        """Do nothing: tensors are kept at once."""
