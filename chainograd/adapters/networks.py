"""Calling a diffusion network whose arguments go by one name or another."""

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

# Names under which networks take a tensor they are conditioned on, the likeliest first.
CONDITIONS = ("encoder_hidden_states", "class_labels", "context", "y")


def predict(model: Callable[..., Any], x: Tensor, t: Any, condition: Any = None) -> Tensor:
    """Return what a network predicts.

    Args:
        model: A diffusers model, or any callable ``model(x, t, …)``. One that takes its time as
            ``timestep`` is given it by that name.
        x: ``[N, …]``.
        t: A time, or N of them; a single one is repeated N times.
        condition: A tensor, for what the network takes as ``encoder_hidden_states``,
            ``class_labels``, ``context`` or ``y``, or else as its third argument; a mapping of
            keyword arguments; or None.

    Returns:
        The output itself, or the ``sample`` (or first entry) of what wraps it.
    """
    if isinstance(t, Tensor):
        t = t.to(x.device)
        t = t.expand(len(x)) if t.dim() == 0 else t
    names = argument_names(model)
    args: list[Any] = [x]
    kwargs: dict[str, Any] = {}
    if "timestep" in names:
        kwargs["timestep"] = t
    else:
        args.append(t)
    if isinstance(condition, Mapping):
        kwargs.update(condition)
    elif condition is not None:
        name = next((name for name in CONDITIONS if name in names), None)
        if name is not None:
            kwargs[name] = condition
        elif "timestep" not in names:
            args.append(condition)
        else:
            raise ValueError(
                f"`cond` is a tensor, but {type(model).__name__} takes none of "
                f"{', '.join(CONDITIONS)}. Pass a dict: `cond={{'argument name': tensor}}`."
            )
    output = undecorated(model)(*args, **kwargs)
    if isinstance(output, Tensor):
        return output
    return output.sample if hasattr(output, "sample") else output[0]


def argument_names(model: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a network's arguments, seen through what wraps it."""
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
    """Return a function without torch's decorators that turn gradients off.

    Args:
        function: A function, a bound method or a module.

    Raises:
        ChainError: If it is a module whose ``forward`` has such a decorator, which calling the
            module cannot get around.

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
                "`torch.no_grad()` or its like, so no gradient passes it. Take the decorator off, "
                "or pass a function that calls the undecorated one (`forward.__wrapped__`)."
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
    # What torch's context decorators make of a function; nothing else has both.
    code = getattr(function, "__code__", None)
    return (
        hasattr(function, "__wrapped__")
        and code is not None
        and code.co_name == "decorate_context"
        and code.co_filename.endswith("_contextlib.py")
    )
