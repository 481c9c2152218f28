"""The modules of a model, as its calls see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from chainograd.torch_internals.compiler import INNER_MODULE, is_compiled
from chainograd.torch_internals.modules import called_attribute


class Place(NamedTuple):
    """A module, and the path to it from a root."""

    path: str
    module: nn.Module

    def inner(self) -> list[Place]:
        """Return the modules right inside, or nothing if the calls of these are out of reach.

        torch.compile traces through the modules of a compiled module, and TorchScript runs them in
        C++. So nothing in there may be exchanged.
        """
        if is_sealed(self.module):
            return []
        children = original(self.module).named_children()
        dot = "." if self.path else ""
        return [Place(f"{self.path}{dot}{name}", child) for name, child in children]


def original(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile made a module of, or the module itself."""
    return dict(module.named_children()).get(INNER_MODULE, module)


def is_sealed(module: nn.Module) -> bool:
    """Return whether torch compiled or scripted a module with all that is inside."""
    called = vars(module).get(called_attribute(module))
    compiled = isinstance(called, FunctionType) and is_compiled(called)
    return compiled or isinstance(module, torch.jit.ScriptModule)


def is_called(module: nn.Module) -> bool:
    """Return whether a module can be called, and does not only hold others as `nn.ModuleList`."""
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module's author wrote.

    FSDP2 and parametrizations give a module a class of their own, a subclass of the author's.
    """
    classes = type(original(module)).__mro__
    return next(cls for cls in classes if not cls.__module__.startswith(_WRAPPING))


_WRAPPING = ("torch.distributed.", "torch.nn.utils.parametrize")


def parameters_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a module with their names, those without a shape left out."""
    return ((name, p) for name, p in module.named_parameters() if not is_lazy(p))


def size(*modules: nn.Module) -> int:
    """Return the number of parameters in modules, those of embedding tables left out.

    A table may have more parameters than all blocks together, and hardly computes anything.
    """
    inner = {part for module in modules for part in module.modules()}
    own = {
        id(p): p.numel()
        for part in inner
        if not isinstance(part, nn.Embedding)
        for p in part.parameters(recurse=False)
        if not is_lazy(p)
    }
    return sum(own.values())


def consists_of(module: nn.Module, parts: Iterable[nn.Module]) -> bool:
    """Return whether parts of a module hold at least half of its parameters."""
    parts = tuple(parts)
    return bool(parts) and 2 * size(*parts) >= size(module)


def reached(roots: Iterable[nn.Module]) -> tuple[list[nn.Module], set[nn.Module]]:
    """Return the roots that lie in no other root, and all modules, those in sealed ones too."""
    modules: dict[nn.Module, None] = {}
    held: set[nn.Module] = set()
    waiting = list(roots)[::-1]
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules[module] = None
            children = [child for child in module.children() if child is not module]
            held.update(children)
            waiting += children
    return [module for module in modules if module not in held], set(modules)


def within(root: nn.Module) -> Iterator[Place]:
    """Yield a root and the modules inside, those in sealed ones left out, each once."""
    waiting, seen = [Place("", root)], set()
    while waiting:
        place = waiting.pop()
        if place.module not in seen:
            seen.add(place.module)
            yield place
            waiting += place.inner()[::-1]
