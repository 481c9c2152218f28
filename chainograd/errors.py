"""What can go wrong in a chain, as exceptions that say what to do."""

from __future__ import annotations

from typing_extensions import Self


class ChainError(RuntimeError):
    """Something that only happens in a chain; the kinds below say what.

    Attributes:
        step: The step it happened in, where that is known.
    """

    step: int | None = None

    def in_step(self, step: int) -> Self:
        """Return the error, which tells the step it happened in."""
        self.step = step
        return self


class CapturedTensorError(ChainError):
    """A step used a tensor that requires a gradient and that the chain was not told of.

    Raised instead of leaving that gradient out. The way out is to name the tensor with
    ``params=[…]``, or to pass it as an argument of the chain.
    """


class ChangedTensorError(ChainError):
    """A tensor that steps use was changed in place where the gradient needs its old value."""


class ReplayError(ChainError):
    """A step that was run again for its gradient did not give the state of the first run."""


class StoreError(ChainError):
    """States could not be kept where ``store=`` says: no room, no right to write, a lost file."""
