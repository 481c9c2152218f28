"""The options of a chain, each checked once, before anything runs."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

from torch import Generator, Tensor
from torch.nn import Module

from chainograd.blocks.choice import Blocks, chosen_blocks
from chainograd.plans.budget import Budget
from chainograd.plans.integers import as_integer, is_integer
from chainograd.plans.plan import Plan
from chainograd.plans.planners import PlanName, resolve
from chainograd.plans.restrict import without_graphs
from chainograd.storage.store import Store
from chainograd.truncation.grad_steps import GradSteps, resolve_grad_steps


def as_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``step``.

    Raises:
        TypeError: If it is not callable.
    """
    if not callable(step):
        raise TypeError(
            f"`step` must be callable as step(x, i, …), got {_shown(step)}. Pass a function or a "
            "module."
        )
    return step


def as_count(name: str, value: object, of: str) -> int:
    """Return a count as a Python integer; ``of`` says what is counted, for the error.

    Raises:
        ValueError: If the value is not an integer of at least 1.
    """
    count = as_integer(name, value) if is_integer(value) else 0
    if count < 1:
        raise ValueError(f"`{name}` must be {of} of at least 1, got {_shown(value)}.")
    return count


def as_params(params: Iterable[Tensor]) -> list[Tensor]:
    """Return ``params`` as a list.

    Raises:
        TypeError: If they are not a list of tensors.
    """
    if isinstance(params, Tensor):
        raise TypeError("`params` must be a list of tensors, got a tensor. Pass `params=[tensor]`.")
    if isinstance(params, Module):
        raise TypeError(
            f"`params` must be a list of tensors, got {_shown(params)}. Pass "
            "`params=module.parameters()`."
        )
    return _listed("params", params, Tensor, "tensors: `params=[tensor]`")


def as_generators(generators: Iterable[Generator]) -> list[Generator]:
    """Return ``generators`` as a list.

    Raises:
        TypeError: If they are not a list of generators.
    """
    if isinstance(generators, Generator):
        raise TypeError(
            "`generators` must be a list of generators, got a generator. Pass "
            "`generators=[generator]`."
        )
    return _listed(
        "generators", generators, Generator, "`torch.Generator` objects: `generators=[generator]`"
    )


def as_choice(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return an option's value.

    Raises:
        ValueError: If the value is not one of ``choices``.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {_shown(value)}.")
    return value


def as_plan(
    plan: PlanName | Plan | int | str | Budget, num_steps: int, micro_batch: int | None
) -> tuple[Plan, Budget | None]:
    """Return the first plan and the budget, or None if ``plan`` is not a budget.

    Raises:
        ValueError: If there is no such plan, or the chain cannot carry it out.
    """
    if isinstance(plan, Plan) or (isinstance(plan, str) and plan in get_args(PlanName)):
        first, budget = resolve(cast("PlanName | Plan", plan), num_steps), None
    else:
        first, budget = resolve("nodes", num_steps), Budget.of(plan)
    if micro_batch is None:
        return first, budget
    if first.graphs > 1:
        which = "'graph'" if plan == "graph" else "a plan"
        raise ValueError(
            f"`plan` is {which}, which keeps {first.graphs} graphs, but a chain with `micro_batch` "
            f"({micro_batch}) cannot keep graphs: its slices run one after the other, each with "
            "its own graph. Pass `plan='nodes'` or a number of bytes, or leave `micro_batch` out."
        )
    return without_graphs(first), budget


def as_store(store: Store | str | os.PathLike[str], budget: Budget | None) -> Store:
    """Return the store.

    Raises:
        ValueError: If ``store`` is not a place, or if it is the device and the budget is one for
            the host too.
    """
    found = store if isinstance(store, Store) else Store(store)
    if budget is not None and budget.host is not None and found.place == "device":
        raise ValueError(
            f"`plan` is a budget with `host` {budget.host!r}, but `store` is 'device', so nothing "
            "is kept on the host. Pass `store='host'` or a folder, or leave `host` out."
        )
    return found


def as_grad_steps(
    grad_steps: GradSteps | Callable[[int], GradSteps] | None, num_steps: int
) -> GradSteps | Callable[[int], GradSteps] | None:
    """Return the steps that the gradient may pass, or the function that returns them.

    Raises:
        TypeError: If ``grad_steps`` is neither a number nor a set nor a function.
        ValueError: If the chain does not have these steps.
    """
    if grad_steps is None or callable(grad_steps):
        return grad_steps
    return resolve_grad_steps(grad_steps, num_steps)


def as_blocks(blocks: Blocks) -> Literal["auto"] | tuple[Module, ...] | None:
    """Return the choice of blocks, with its modules as a tuple, each once.

    Raises:
        TypeError: If it is neither ``"auto"`` nor None nor a list of modules that can be called.
    """
    return chosen_blocks(blocks)


def as_function(name: str, value: Any, called_as: str) -> Any:
    """Return a function or None; ``called_as`` shows its call, for the error.

    Raises:
        TypeError: If the value is neither a function nor None.
    """
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be callable as {called_as}, or None, got {_shown(value)}.")
    return value


def as_progress(progress: bool) -> bool:
    """Return whether to show progress bars.

    Raises:
        TypeError: If ``progress`` is neither True nor False.
        ImportError: If tqdm is missing.
    """
    if not isinstance(progress, bool):
        raise TypeError(f"`progress` must be True or False, got {_shown(progress)}.")
    if progress and importlib.util.find_spec("tqdm") is None:
        raise ImportError("`progress=True` needs tqdm, which is not installed: pip install tqdm.")
    return progress


def refuse_shadowed(step: Callable[..., Any], method: str, keyword: str) -> None:
    """Raise if a keyword of ``chain.check`` or ``chain.measure`` may be meant for the step.

    Raises:
        TypeError: If the step has a parameter of that name.
    """
    while isinstance(step, functools.partial):
        if keyword in step.keywords:
            return  # the step has a value for it
        step = step.func
    called = cast("Module", step).forward if isinstance(step, Module) else step
    try:
        parameter = inspect.signature(called).parameters.get(keyword)
    except (TypeError, ValueError):
        return  # some built-in functions have no signature
    if parameter is not None and parameter.kind in _BY_KEYWORD:
        raise TypeError(
            f"`{keyword}=` is an option of `chain.{method}`, but the step has a parameter "
            f"`{keyword}` too, so the call is ambiguous. For the step's parameter, pass it by "
            f"position, or make the chain of `functools.partial(step, {keyword}=…)`. For the "
            "option, make the chain of `lambda x, i, *args: step(x, i, *args)`, which hides the "
            "parameter's name."
        )


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _listed(name: str, values: Any, kind: type, expected: str) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list of {expected}, got {_shown(values)}.")
    listed = list(values)
    for position, value in enumerate(listed):
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` must hold {expected}; entry {position} is {_shown(value)}.")
    return listed


def _shown(value: object) -> str:
    """Return a value's text, or its type if the text is long."""
    text = "" if isinstance(value, Module) else repr(value)
    kind = type(value).__name__
    return text if value is None or (text and len(text) < 60) else f"a {kind}"
