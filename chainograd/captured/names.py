"""What a function's code names: global variables, and members of the modules that it imports."""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

# Libraries in whose modules and functions no step keeps tensors.
_LIBRARIES = frozenset(
    ("torch", "numpy", "builtins", "math", "functools", "itertools", "random", "chainograd")
)
_PYTHON = sysconfig.get_paths()["stdlib"] + os.sep


def named_by(function: types.FunctionType) -> Iterator[Any]:
    """Yield the globals that a function's code names, and the members of modules that it names."""
    scope = function.__globals__
    # `functools.wraps` copies `__module__`, but nothing changes whose globals a function has.
    path = function.__code__.co_filename
    # Code without a file, such as a docstring's example, does not belong to the module it runs in.
    if (_is_library(str(scope.get("__name__"))) and path[0] != "<") or _is_pythons(path):
        return
    names = names_in(function.__code__)
    for name in names:
        for value in [scope[name]] if name in scope else _imported(name, scope):
            if isinstance(value, types.ModuleType):
                yield from _members(value, names, set())
            else:
                yield value


def _imported(name: str, scope: dict[str, Any]) -> Iterator[types.ModuleType]:
    """Yield the modules that a function may import under a name that is no global variable."""
    for whole in (name, f"{scope.get('__package__')}.{name}"):
        module = sys.modules.get(whole)
        if isinstance(module, types.ModuleType):
            yield module


def _members(module: types.ModuleType, names: frozenset[str], seen: set[int]) -> Iterator[Any]:
    """Yield the members of a module, and of modules inside it, that have one of the names."""
    if id(module) in seen or holds_no_tensors(module):
        return
    seen.add(id(module))
    for name in names & vars(module).keys():
        value = vars(module)[name]
        if isinstance(value, types.ModuleType):
            yield from _members(value, names, seen)
        else:
            yield value


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


@functools.cache
def _is_pythons(path: str) -> bool:
    """Return whether a file belongs to Python's standard library."""
    return path.startswith((_PYTHON, "<frozen")) and "site-packages" not in path


def holds_no_tensors(space: types.ModuleType | type) -> bool:
    """Return whether a module, or the module of a class, is one where no step keeps tensors."""
    if isinstance(space, type):
        name = str(space.__module__)  # some classes made in C have a descriptor there
        module = sys.modules.get(name)
    else:
        name, module = space.__name__, space
    if _is_library(name) or name in sys.builtin_module_names:
        return True
    return _is_pythons(getattr(module, "__file__", None) or "")


@functools.lru_cache(maxsize=10_000)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Return the global and attribute names in a function's code, inner functions included."""
    inner = (names_in(constant) for constant in code.co_consts if type(constant) is types.CodeType)
    return frozenset(code.co_names).union(*inner)
