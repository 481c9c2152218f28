"""Places in the user's own code."""

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
# Code that only does what its caller asks. Other libraries, and the rest of torch, decide by
# themselves.
_TOLD = (
    _PYTHON,
    *(
        os.path.join(_TORCH, *parts.split("/"))
        for parts in ("autograd/", "overrides.py", "utils/_contextlib.py", "nn/modules/module.py")
    ),
)
_BORDER = "chainograd.preflight.rehearsal"  # calls the observed steps
# Functions of these modules stand between an operation and its caller. They are not part of the
# step.
_MODES = {
    "chainograd.preflight.sites",
    "chainograd.preflight.observers",
    "chainograd.preflight.detach_tracker",
    "chainograd.preflight.mutation_tracker",
    "chainograd.preflight.rng_tracker",
    "chainograd.captured.find",
    "chainograd.captured.stand_ins",
}


class Site(NamedTuple):
    """A place in the running code.

    Attributes:
        where: ``file:line`` of the innermost line that the user wrote; None if there is none.
        direct: Whether that line calls the operation itself, not through a library.
    """

    where: str | None
    direct: bool


def site() -> Site:
    """Return where the observed operation was called."""
    direct = True
    for frame in _frames():
        path = frame.f_code.co_filename
        if _is_own(path):
            return Site(f"{path}:{frame.f_lineno}", direct)
        direct = direct and path.startswith(_TOLD)
    return Site(None, False)


def module_name() -> str:
    """Return the name of the running module, from the outermost module inwards."""
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
    """Yield the running frames, innermost first, from the observed operation up to the step."""
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != _BORDER:
        if frame.f_globals.get("__name__") not in _MODES:
            yield frame
        frame = frame.f_back


def _is_own(path: str) -> bool:
    installed = "site-packages" in path or "dist-packages" in path or path.startswith("<frozen")
    return not installed and not path.startswith((_TORCH, _PYTHON, _HERE))
