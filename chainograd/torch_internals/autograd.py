"""Autograd's engine: a backward pass, what is asked about it while it runs, and tensors' hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

_C: Any = torch._C
_engine: Any = Variable._execution_engine
Hooks = OrderedDict[int, Callable[..., Any]]

run_backward: Callable[..., tuple[Tensor | None, ...]] = partial(
    _engine.run_backward, allow_unreachable=True, accumulate_grad=False
)
"""Return gradients: `run_backward(outputs, cotangents, keep_graph, create_graph, inputs)`.

This is what `torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)` calls. For a
small step, the checks of `grad` in Python take as long as the engine below it. Without the checks,
the caller must pass cotangents of the right shapes.

Private: `torch.autograd.Variable._execution_engine.run_backward`. Public: `torch.autograd.grad`.
"""

set_grad_enabled: Callable[[bool], None] = _C._set_grad_enabled
"""Turn recording on or off, in a fifth of the time of `torch.enable_grad()`.

Private: `torch._C._set_grad_enabled`. Public: `torch.set_grad_enabled`.
"""

SET_GRAD_ENABLED = "_set_grad_enabled"
"""Name of the function that function modes see when recording is turned on or off.

Private: `torch._C._set_grad_enabled`. Public: none.
"""

call_after_backward: Callable[[Callable[[], None]], None] = _engine.queue_callback
"""Let a function be called when the backward pass that runs now is over.

If the pass fails, the function is forgotten and not called.

Private: `torch.autograd.Variable._execution_engine.queue_callback`. Public: none.
"""

backward_id: Callable[[], int] = _C._current_graph_task_id
"""Return a number for the backward pass that runs now in this thread; -1 if none does.

Private: `torch._C._current_graph_task_id`. Public: none.
"""

keeps_graph: Callable[[], bool] = _C._autograd._get_current_graph_task_keep_graph
"""Return whether the backward pass that runs now was called with `retain_graph=True`.

Private: `torch._C._autograd._get_current_graph_task_keep_graph`. Public: none.
"""

AccumulateGrad: type = _C._functions.AccumulateGrad
"""The class of the graph's nodes that add a gradient to the `.grad` of a leaf.

Private: `torch._C._functions.AccumulateGrad`. Public: none.
"""

hooks_of: Callable[[Tensor], Hooks | None] = attrgetter("_backward_hooks")
"""Return the hooks that `Tensor.register_hook` has registered, by number; None before the first.

Private: `torch.Tensor._backward_hooks`. Public: none.
"""


def fills_grad(node: Any) -> bool:
    """Return whether the backward pass that runs now will call a node and fill `.grad`.

    Private: `torch._C._will_engine_execute_node`. Public: none.
    """
    try:
        return _C._will_engine_execute_node(node)
    except RuntimeError:  # raised inside torch.autograd.grad, which fills no `.grad`
        return False


def replace_hooks(tensor: Tensor, table: Hooks) -> None:
    """Let a tensor that is no leaf keep its hooks in a given table from now on.

    Private: `torch.Tensor._backward_hooks`, `grad_fn._register_hook_dict`. Public: none.
    """
    node: Any = tensor.grad_fn
    tensor._backward_hooks = table
    node._register_hook_dict(tensor)


def accumulation_hooks(tensor: Any) -> dict[int, Callable[..., Any]]:
    """Return the hooks that are called when a leaf's gradient has been added to its `.grad`.

    Private: `torch.Tensor._post_accumulate_grad_hooks`. Public: none.
    """
    return tensor._post_accumulate_grad_hooks or {}


def forward_class(kind: Any) -> type:
    """Return the `torch.autograd.Function` whose nodes in the graph have a given class.

    Private: `torch.autograd.function.BackwardCFunction._forward_cls`. Public: none.
    """
    return kind._forward_cls


next_sequence_number: Callable[[], int] = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""Return the number that the next node of a graph gets in this thread.

Private: `torch.autograd._get_sequence_nr`. Public: none.
"""


def sequence_number(node: Any) -> int:
    """Return the number that a node of a graph was given when it was made, in its thread.

    Private: `grad_fn._sequence_nr`. Public: none.
    """
    return node._sequence_nr()
