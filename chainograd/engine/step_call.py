"""A call of the user's step, and what is refused about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chainograd.captured.stand_ins import StandIns
from chainograd.engine.shared import SharedTensors
from chainograd.errors import ChainError
from chainograd.state import (
    NO_ARGUMENTS,
    State,
    differentiable,
    refuse_hidden,
    same_leaves,
    versions,
)
from chainograd.torch_internals import pytree


class StepCall:
    """Calls the user's step on a flattened state, in the grad mode that is in force.

    Args:
        function: The user's step.
        num_steps: M, for errors.
        shared: What the steps share.
    """

    def __init__(self, function: Callable[..., Any], num_steps: int, shared: SharedTensors) -> None:
        self.function, self.num_steps, self.shared = function, num_steps, shared
        arguments = shared.arguments
        args, kwargs = arguments.tree()
        self.nested = len(arguments.leaves) > 0 and not all(
            pytree.tree_structure(value).is_leaf() for value in (*args, *kwargs.values())
        )

    def __call__(self, index: int, state: State, arguments: State) -> State:
        """Return the state that the step returns, flattened.

        Raises:
            ChainError: If the step changes the state or an argument in place, or returns no state.
            Exception: What the step raises, with the step's index in its notes.
        """
        before = versions(state.leaves)
        torch.clear_autocast_cache()  # else a cast that a step made would serve the next one
        function, args, kwargs = self.function, (), {}
        if self.shared.stand_ins:
            function = partial(_with_stand_ins, self.shared.stand_ins, function)
        try:
            if arguments.spec is not NO_ARGUMENTS.spec:
                args, kwargs = arguments.tree()  # made anew: no step sees a container of another
            result = function(state.tree(), index, *args, **kwargs)
            after = State.of(result)
        except Exception as error:
            self._name(index, error)
            refused = _in_place(index, error)
            if refused is None:
                raise
            raise refused from error
        if not isinstance(result, Tensor):
            _refuse_result(index, result, after, state)
        if before != versions(state.leaves):
            raise ChainError(
                f"Step {index} changed its input state in place, but the gradient needs that "
                "state again. Return new tensors (`x = x + …` instead of `x += …`)."
            )
        if self.nested and not same_leaves(State.of((args, kwargs)), arguments):
            raise ChainError(
                f"Step {index} changed a list or dict among the chain's arguments. The steps after "
                "it would see that in a plain loop, and not when they run again. Carry what "
                "changes in the state."
            )
        return after

    def _name(self, index: int, error: Exception) -> None:
        """Add the step's index to an error that the step raised."""
        notes = [f"This happened in step {index} of 0 … {self.num_steps - 1} of a chain."]
        if "Can't detach views in-place" in str(error):
            notes.append(
                "A chain passes its steps views of their states, which `x.detach_()` does not "
                "take: write `x = x.detach()`."
            )
        for note in notes:
            if note not in getattr(error, "__notes__", ()):
                # What `add_note` does, which Python 3.10 does not have.
                error.__dict__.setdefault("__notes__", []).append(note)


def _with_stand_ins(
    swapped: dict[int, Tensor], step: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    with StandIns(swapped):
        return step(*args, **kwargs)


def _refuse_result(index: int, result: Any, after: State, before: State) -> None:
    """Refuse a result that is no state, or that hides tensors in an object."""
    if result is None:
        raise ChainError(
            f"Step {index} returned None. A step returns the next state: end it with `return x`."
        )
    # An object that is only passed on holds nothing that a step computed.
    new = [leaf for leaf in after.leaves if all(leaf is not old for old in before.leaves)]
    refuse_hidden(new, differentiable, f"The state that step {index} returns")


_INPLACE = (
    "leaf Variable that requires grad is being used in an in-place operation",
    "was created in no_grad mode and is being modified inplace",
)


def _in_place(index: int, error: Exception) -> ChainError | None:
    """Return the error for a step that changes a leaf in place, which torch forbids."""
    if not any(text in str(error) for text in _INPLACE):
        return None
    return ChainError(
        f"Step {index} changed a tensor that requires a gradient in place: its input state, most "
        "likely, but the gradient needs that state again. Return new tensors (`x = x + …` instead "
        "of `x += …`)."
    )
