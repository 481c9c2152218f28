"""Calls of diffusion networks, whose arguments have different names in different libraries."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from chainograd.errors import ChainError
from chainograd.torch_internals.compiler import INNER_MODULE
from chainograd.torch_internals.modules import modules_of

# Names of the argument that takes a conditioning tensor, the most common first.
CONDITIONS = ("encoder_hidden_states", "class_labels", "context", "y")


def predict(model: Callable[..., Any], x: Tensor, t: Any, condition: Any = None) -> Tensor:
    """Return a network's prediction.

    Args:
        model: A diffusers model, or any callable ``model(x, t, …)``. An argument called
            ``timestep`` gets the time by that name.
        x: ``[N, …]``.
        t: One time, which is repeated N times, or N times.
        condition: None; a tensor for the argument ``encoder_hidden_states``, ``class_labels``,
            ``context`` or ``y``, or else for the third argument; or a mapping of keyword arguments.

    Returns:
        The tensor that the network returns, or the ``sample`` or first entry of its output.

    Raises:
        ValueError: If the network takes no conditioning tensor under these names.
    """
    if isinstance(t, Tensor):
        t = t.to(x.device)
        t = t.expand(len(x)) if t.dim() == 0 else t
    names = argument_names(model)
    by_name = "timestep" in names
    args, kwargs = ([x], {"timestep": t}) if by_name else ([x, t], {})
    if isinstance(condition, Mapping):
        kwargs.update(condition)
    elif condition is not None:
        name = _name_of_condition(model, names)
        args += [condition] if name is None else []
        kwargs |= {} if name is None else {name: condition}
    output = undecorated(model)(*args, **kwargs)
    if isinstance(output, Tensor):
        return output
    return output.sample if hasattr(output, "sample") else output[0]


def _name_of_condition(model: Callable[..., Any], names: tuple[str, ...]) -> str | None:
    """Return the argument for a conditioning tensor; None is the third argument."""
    name = next((name for name in CONDITIONS if name in names), None)
    if name is None and "timestep" in names:
        raise ValueError(
            f"`cond` is a tensor, but {type(model).__name__} has no argument called "
            f"{', '.join(CONDITIONS)}. Pass a dict: `cond={{'argument name': tensor}}`."
        )
    return name


def argument_names(model: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a network's arguments, looking inside wrappers such as DDP."""
    function = _inside(model)
    function = function.forward if isinstance(function, nn.Module) else function
    return _names(getattr(function, "__func__", function))


@functools.lru_cache(maxsize=256)
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def _inside(model: Any) -> Any:
    """Return the module inside DDP, torch.compile or an adapter library's wrapper."""
    while isinstance(model, nn.Module):
        inner = next(
            (m for name in ("module", INNER_MODULE, "base_model", "model")
             if isinstance(m := modules_of(model).get(name), nn.Module)),
            None,
        )  # fmt: skip
        if inner is None or "timestep" in _names(type(model).forward):
            return model
        model = inner
    return model


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without the decorators of torch that turn gradients off.

    Args:
        function: A function, a bound method or a module.

    Raises:
        ChainError: If ``function`` is a module whose ``forward`` has such a decorator. Calling the
            module would always run it.

    Example:
        >>> import torch
        >>> @torch.no_grad()
        ... def double(x):
        ...     return 2 * x
        >>> undecorated(double)(torch.ones(1, requires_grad=True)).requires_grad
        True
    """
    if isinstance(function, nn.Module):
        forward = _inside(function).forward
        if undecorated(forward) is not forward:
            raise ChainError(
                f"The `forward` of {type(_inside(function)).__name__} is decorated with "
                "`torch.no_grad()` or a similar decorator, so no gradient passes it. Remove the "
                "decorator, or pass a function that calls `forward.__wrapped__`."
            )
        return function
    inner: Any = getattr(function, "__func__", function)
    plain = inner
    while _turns_gradients_off(plain):
        plain = plain.__wrapped__
    if plain is inner:
        return function
    owner = getattr(function, "__self__", None)
    return plain if owner is None else types.MethodType(plain, owner)


def _turns_gradients_off(function: Any) -> bool:
    # Only functions decorated by one of torch's context managers have all of these.
    code = getattr(function, "__code__", None)
    return (
        hasattr(function, "__wrapped__")
        and code is not None
        and code.co_name == "decorate_context"
        and code.co_filename.endswith("_contextlib.py")
    )
