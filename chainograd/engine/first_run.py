"""Graphs of first runs: they save nothing, and a gradient that arrives at them is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from chainograd.errors import ChainError
from chainograd.torch_internals.autograd import hooks_of

# Note [First runs]
# 1. A step runs for the first time with its graph, as in the plain loop, because torch chooses
#    other kernels under `no_grad` (attention, LSTM, everything that `torch.compile` made). The
#    graph is discarded: its nodes save nothing (`nothing_saved`), so it needs no more memory
#    than a run without a graph, and the graph is freed with the step.
# 2. The graph tells what the chain must know: which leaves of the result need a gradient, which
#    of the tensors that the chain reaches are used at all, and whether a tensor is used that the
#    chain cannot see.
# 3. A gradient that is sent through such a graph after its step is over is refused
#    (`UnsavedError`, and hooks on the leaves the graph begins with): a loss on features that a
#    step kept would otherwise miss the gradient that flows on into earlier steps.
# 4. A step that takes a gradient of its own needs what its graph saves. This shows in the first
#    such step: it runs once more, with everything saved, and so do all steps from there on.


class UnsavedError(ChainError):
    """A gradient was sent through the graph of a step's first run, which saves nothing."""


class NeedsSavedError(Exception):
    """A step asked for what the graph of its first run did not save."""


class NeedsWholeError(NeedsSavedError):
    """A step took a gradient of its own through its blocks, so its graph cannot be cut."""


_OVER = (
    "A gradient arrived at the graph of a chain's step after the step was over. A tensor that the "
    "step computed was kept (features that a hook collected, a cached embedding) and used in a "
    "loss or in another run. Carry the tensor in the state and take the loss on "
    "`chain.trajectory(x)`, or compute it before the chain; if its gradient is not wanted, keep "
    "`tensor.detach()`."
)


class Asking:
    """Whether a step asked for what its graph would have saved.

    Attributes:
        asked: Whether it did. Then it takes a gradient of its own.
        running: Whether the step still runs.
    """

    def __init__(self) -> None:
        self.asked, self.running = False, True

    def unpack(self, _: None) -> Tensor:
        """Refuse to return what was never saved."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Refuse a gradient, and note that the step may have asked for it."""
        self.asked = True
        raise UnsavedError(_OVER)


class nothing_saved(saved_tensors_hooks):  # noqa: N801, as torch's own contexts are written
    """Lets graphs that are made in the block save nothing: note [First runs], 1.

    Raises:
        NeedsSavedError: At the end of the block, if the block itself needed what they would save.
    """

    def __init__(self) -> None:
        self.asking = Asking()
        super().__init__(_nothing, self.asking.unpack)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if isinstance(error[1], Exception):
            if needs_saved(error[1], self.asking):
                raise NeedsSavedError from error[1]
        elif self.asking.asked:
            raise NeedsSavedError


def _nothing(_: Tensor) -> None:
    return None


_HOOKS = "saved tensor hooks"  # what torch.func says where such hooks are in force


def needs_saved(error: Exception, asking: Asking) -> bool:
    """Return whether a step failed because its graph had saved nothing."""
    return asking.asked or _HOOKS in str(error).replace("_", " ")


class Guard:
    """Refuses gradients that arrive at a step's own leaves, unless the chain sends them.

    Args:
        leaves: The leaves, among other things.
        block: The block whose leaves they are, in words.

    Attributes:
        open: Whether the chain is sending a gradient.
    """

    def __init__(self, leaves: Iterable[Any], block: str | None = None) -> None:
        self.open, self.block = False, block
        for leaf in leaves:
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf:
                leaf.register_hook(self._arrived)

    def __enter__(self) -> None:
        self.open = True

    def __exit__(self, *error: object) -> None:
        self.open = False

    def _arrived(self, _: Tensor) -> None:
        if not self.open:
            raise UnsavedError(_OVER)


def kept_by(leaf: Tensor) -> str | None:
    """Return the block that keeps a leaf of its own beyond its run, in words."""
    guards = [getattr(hook, "__self__", None) for hook in (hooks_of(leaf) or {}).values()]
    return next((g.block for g in guards if isinstance(g, Guard) and g.block), None)
