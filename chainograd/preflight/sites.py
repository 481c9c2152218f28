"""Where in the user's own code something happens."""

from __future__ import annotations

import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep
_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
# These do what they are told; any other library, and the rest of torch, decides by itself.
_TOLD = (
    _PYTHON,
    *(
        os.path.join(_TORCH, *parts.split("/"))
        for parts in ("autograd/", "overrides.py", "utils/_contextlib.py", "nn/modules/module.py")
    ),
)
_BORDER = "chainograd.preflight.rehearsal"  # calls the steps that are watched
# Their functions stand between an operation and its caller, and are no part of the step.
_MODES = {
    "chainograd.preflight.sites",
    "chainograd.preflight.observers",
    "chainograd.captured.find",
    "chainograd.captured.stand_ins",
}


class Site(NamedTuple):
    """A place in the code that runs.

    Attributes:
        where: ``file:line`` of the innermost line that the user wrote; None if there is none.
        direct: Whether that line does it by itself, and no library that it calls.
    """

    where: str | None
    direct: bool


def site() -> Site:
    """Return where the operation that is being watched was called."""
    direct = True
    for frame in _frames():
        path = frame.f_code.co_filename
        if _is_own(path):
            return Site(f"{path}:{frame.f_lineno}", direct)
        direct = direct and path.startswith(_TOLD)
    return Site(None, False)


def module_name() -> str:
    """Return the name of the module that is running, as seen from the outermost one."""
    running = [frame.f_locals.get("self") for frame in _frames()]
    modules = [module for module in running if isinstance(module, nn.Module)]
    if not modules:
        return "a function"
    inner, root = modules[0], modules[-1]
    path = next((name for name, module in root.named_modules() if module is inner), "…")
    return f"{type(root).__name__}.{path}" if path else type(root).__name__


def definition(step: Any) -> str | None:
    """Return ``file:line`` of a step's definition, decorators included, if the user wrote it."""
    while isinstance(step, partial):
        step = step.func
    if not isinstance(step, (types.FunctionType, types.MethodType)):
        step = type(step).forward if isinstance(step, nn.Module) else type(step).__call__
    code = getattr(inspect.unwrap(step), "__code__", None)
    if code is None or not _is_own(code.co_filename):
        return None
    return f"{code.co_filename}:{code.co_firstlineno}"


def _frames() -> Iterator[types.FrameType]:
    """Yield the frames that run, innermost first, from the watched operation up to the step."""
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != _BORDER:
        if frame.f_globals.get("__name__") not in _MODES:
            yield frame
        frame = frame.f_back


def _is_own(path: str) -> bool:
    installed = "site-packages" in path or "dist-packages" in path or path.startswith("<frozen")
    return not installed and not path.startswith((_TORCH, _PYTHON, _HERE))
