"""The graph of one step: which leaves it uses, and that no part of it is an earlier step's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from chainograd.engine.accumulate import Use
from chainograd.errors import ChainError
from chainograd.torch_internals.autograd import AccumulateGrad

# Note [First runs]
# 1. A step runs for the first time with its graph, as in the plain loop, because torch chooses
#    other kernels under `no_grad` (attention, LSTM, everything that `torch.compile` made). The
#    graph is not kept: nodes save nothing (`nothing_saved`), so memory stays that of a run
#    without a graph, and the graph dies with the step.
# 2. The graph tells what the chain must know: which leaves of the result need a gradient, which
#    of the tensors that the chain reaches are used at all, and whether a tensor is used that the
#    chain cannot see.
# 3. Whoever goes back through such a graph after its step is over is refused (`UnsavedError`, and
#    hooks on the leaves it begins with): a loss on features that a step kept would otherwise miss
#    the gradient that flows on into earlier steps.
# 4. A step that takes a gradient of its own needs what its graph saves. It shows in the first such
#    step: that step runs once more, with everything saved, and so do all steps from there on.

# Note [Kept tensors]
# In the plain loop a tensor that step 0 computed and kept (merged adapter weights, keys and values
# of a prompt) takes the gradients of all later steps to what it was computed from. In a chain the
# tensor is there already when a later step runs again. So the nodes of every graph are marked, and
# a step whose graph leads to a marked node is refused. What is kept and never used again, as by a
# hook that collects features, leads nowhere.

_MARK = "chainograd"


class Mark(NamedTuple):
    """What the nodes of a step's graph are marked with.

    Attributes:
        run: Stands for one call of a chain.
        step: The step.
    """

    run: object
    step: int


def leaves_used(outputs: Iterable[Any], mark: Mark | None) -> tuple[list[Use], list[Any]]:
    """Return every use of a leaf in the graph of the tensors among ``outputs``, and its nodes.

    The nodes are marked.

    A leaf requiring a gradient that is itself among the outputs is used too. Costs about half a
    microsecond a node.

    Raises:
        ChainError: If the graph leads to one that is marked already.
    """
    uses: list[Use] = []
    stack: list[Any] = []
    for output in outputs:
        if isinstance(output, Tensor) and output.requires_grad:
            if output.grad_fn is None:
                uses.append((output, None, 0))
            else:
                stack.append(output.grad_fn)
    seen = dict.fromkeys(stack)  # in the order in which they are met
    while stack:
        node = stack.pop()
        for place, (parent, _) in enumerate(node.next_functions):
            if type(parent) is AccumulateGrad:
                uses.append((parent.variable, node, place))
            elif parent is not None and parent not in seen:
                seen[parent] = None
                stack.append(parent)
    if mark is not None:
        _mark(seen, mark)
    return uses, list(seen)


def _mark(nodes: Iterable[Any], mark: Mark) -> None:
    tables = [(node, node.metadata) for node in nodes]
    for node, table in tables:
        if _MARK in table:
            raise ChainError(_kept(node, table[_MARK], mark)).in_step(mark.step)
    for _, table in tables:
        table[_MARK] = mark


def _kept(node: Any, before: Mark, now: Mark) -> str:
    by = f"(by {node.name().removesuffix('Backward0')})"
    where = f"step {before.step}" if before.run is now.run else "a step of an earlier call"
    if before == now:
        where = f"an earlier run or slice of step {before.step}"
    return (
        f"Step {now.step} uses a tensor that {where} computed {by} and kept. What it was computed "
        "from would get no gradient through it: when steps run again, they find it there. Compute "
        "it before the chain and pass it as an argument, carry it in the state, or compute it in "
        "every step; if its gradient is not wanted, keep `tensor.detach()`."
    )


class UnsavedError(ChainError):
    """A gradient was sent through the graph of a step's first run, which saves nothing."""


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
        asked: It did: it takes a gradient of its own.
    """

    def __init__(self) -> None:
        self.asked = False

    def unpack(self, _: None) -> Tensor:
        """Refuse to return what was never saved."""
        self.asked = True
        raise UnsavedError(_OVER)


class nothing_saved(saved_tensors_hooks):  # noqa: N801, as torch's own contexts are written
    """Lets graphs save nothing that is made in the block: note [First runs], 1."""

    def __init__(self) -> None:
        self.asking = Asking()
        super().__init__(_nothing, self.asking.unpack)


def _nothing(_: Tensor) -> None:
    return None


class Guard:
    """Refuses gradients that arrive at a step's own leaves, unless the chain sends them.

    Attributes:
        open: Whether the chain is sending its own.
    """

    def __init__(self, leaves: Iterable[Any]) -> None:
        self.open = False
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


_HOOKS = "saved tensor hooks"  # what torch.func says where such hooks are in force


def needs_saved(error: Exception, asking: Asking) -> bool:
    """Return whether a step failed for want of what its graph would have saved."""
    return asking.asked or _HOOKS in str(error).replace("_", " ")
