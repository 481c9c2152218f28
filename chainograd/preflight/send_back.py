"""Cotangents sent back through a rehearsal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from chainograd.engine.run import Run
from chainograd.preflight.rehearsal import FIRST, ObservedStep
from chainograd.state import wants_gradient


@dataclass(slots=True, eq=False)
class Cotangents:
    """The cotangents of a rehearsal.

    Attributes:
        nodes: For the state that enters each run, and for the last result, one cotangent a leaf.
        given: The cotangent of the state that leaves the first steps.
        inputs: The gradients of the run's inputs, from ``given`` through the first steps alone.
    """

    nodes: list[list[Tensor | None]]
    given: list[Tensor | None]
    inputs: list[Tensor | None]


def send_back(run: Run, observed_steps: Sequence[ObservedStep], value: Tensor | None) -> Cotangents:
    """Send a cotangent back through the runs.

    Args:
        run: The chain's run.
        observed_steps: The runs that `run_first` returned.
        value: A loss on the last state. Without a loss, a fixed random cotangent is sent.
    """
    states = [observed_steps[0].entering, *(observed.leaving for observed in observed_steps)]
    K = sum(observed.index < FIRST for observed in observed_steps)
    nodes: list[list[Tensor | None]] = [[] for _ in states]
    last = states[-1].leaves
    nodes[-1] = _some(last) if value is None else _pulled([value], [torch.ones_like(value)], last)
    if len(observed_steps) > K:
        nodes[K] = _pulled(last, _or_some(nodes[-1], last), states[K].leaves)
    given = _or_some(nodes[K], states[K].leaves)
    wanted = [leaf for leaf in states[0].leaves if wants_gradient(leaf)] + run.shared.inside
    between = [leaf for state in states[:K] for leaf in state.leaves]
    found = iter(_pulled(states[K].leaves, given, [*between, *wanted]))
    for k in range(K):
        nodes[k] = [next(found) for _ in states[k].leaves]
    return Cotangents(nodes, given, list(found))


def _pulled(
    outputs: Sequence[Any], cotangents: Sequence[Tensor | None], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Return the gradient of every input, or None."""
    pairs = [
        (output, g)
        for output, g in zip(outputs, cotangents, strict=True)
        if wants_gradient(output) and g is not None
    ]
    if not pairs or not any(map(wants_gradient, inputs)):
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [leaf for leaf in inputs if wants_gradient(leaf)],
            [g for _, g in pairs],
            retain_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if wants_gradient(leaf) else None for leaf in inputs]


def _some(leaves: Sequence[Any]) -> list[Tensor | None]:
    """Return fixed random cotangents. A constant one would vanish, for example at a softmax."""
    return [
        torch.randn(
            leaf.shape,
            dtype=leaf.dtype,
            device=leaf.device,
            generator=Generator(leaf.device).manual_seed(place),
        )
        if wants_gradient(leaf)
        else None
        for place, leaf in enumerate(leaves)
    ]


def _or_some(cotangents: list[Tensor | None], leaves: Sequence[Any]) -> list[Tensor | None]:
    return _some(leaves) if all(g is None for g in cotangents) else cotangents
