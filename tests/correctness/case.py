"""A case of the table, and the helpers that its functions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.correctness.ways import LOOP, Way

M = 5
Values = Mapping[str, Any]  # a loss, gradients (None where there is none), other things seen


@dataclass(frozen=True)
class Case:
    """A small problem, the same at every run, and what this library must make of it.

    Attributes:
        run: Solves the problem in a way that is given, and returns what is to be compared.
        kind: What it is about, a heading of the table.
        source: The public report that it was made from.
        expected: The worst outcome of this library's ways.
        why: Why that is not simply "right", or what stands in for the loop.
        oracles: The ways that are right.
        slow: It takes seconds, or another process.
        needs: A module, or ``module:name``, without which it cannot run.
    """

    run: Callable[[Way], Values]
    kind: str
    source: str = ""
    expected: str = "right"
    why: str = ""
    oracles: tuple[Way, ...] = (LOOP,)
    slow: bool = False
    needs: str = ""

    @property
    def name(self) -> str:
        """The name of its function, in words."""
        return self.run.__name__.replace("_", " ")

    @property
    def key(self) -> str:
        """Its kind and its name."""
        return f"{self.kind}/{self.name}"

    @property
    def what(self) -> str:
        """The first line of what its function says."""
        return (self.run.__doc__ or "").partition("\n")[0]


def case(source: str = "", **options: Any) -> Callable[[Callable[[Way], Values]], Case]:
    """Make a case of a function that solves a problem in a given way."""

    def made(run: Callable[[Way], Values]) -> Case:
        kind = run.__module__.rpartition(".")[2].replace("_", " ")
        return Case(run, kind, source, **options)

    return made


def leaf(*shape: int, **options: Any) -> Tensor:
    """Return normal noise that wants a gradient."""
    return torch.randn(*shape, **options).requires_grad_()


def gradients(loss: Tensor, **of: Tensor | nn.Module | None) -> Values:
    """Go back from a loss, and return it with the ``.grad`` of tensors and of modules' weights."""
    loss.backward()
    return {"loss": loss.detach().clone(), **grads_of(**of)}


def grads_of(**of: Tensor | nn.Module | None) -> Values:
    """Return the ``.grad`` of tensors and of modules' weights, by name."""
    values: dict[str, Any] = {}
    for name, thing in of.items():
        if isinstance(thing, nn.Module):
            values |= {f"{name}.{key}": p.grad for key, p in thing.named_parameters()}
        elif thing is not None:
            values[name] = thing.grad
    return values


def square(x: Tensor) -> Tensor:
    """Return a loss of which every entry of ``x`` has a gradient of its own."""
    weights = torch.linspace(0.5, 1.5, x.numel()).view(x.shape)
    return (weights * x.float().square()).sum()
