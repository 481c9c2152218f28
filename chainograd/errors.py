"""The errors of a chain. Their texts say what happened, why, and what to do."""

from __future__ import annotations

from typing_extensions import Self


class ChainError(RuntimeError):
    """An error that only a chain raises; the classes below are its kinds.

    Attributes:
        step: The index of the step that it happened in, if that is known.
    """

    step: int | None = None

    def in_step(self, step: int) -> Self:
        """Set the step that the error happened in; return the error."""
        self.step = step
        return self


class CapturedTensorError(ChainError):
    """A step used a tensor that requires a gradient and that the chain does not know.

    The gradient of the tensor would be missing, so the chain raises. The way out is to name the
    tensor with ``params=[…]``, or to pass it as an argument of the chain.
    """


class ChangedTensorError(ChainError):
    """A tensor was changed in place, but the gradient needs its old values."""


class ReplayError(ChainError):
    """A step ran again for its gradient and did not return the state of its first run."""


class StoreError(ChainError):
    """States cannot be stored where ``store=`` says: no room, no right to write, a lost file."""
