"""What can go wrong in a chain, as exceptions that say what to do."""


class ChainError(RuntimeError):
    """Something that only happens in a chain; the kinds below say what."""


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
