"""Notes random draws, and layers that behave as in training."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from chainograd.preflight.observers import Call
from chainograd.preflight.sites import Site, module_name, site


class RNGTracker:
    """Notes random draws, and layers that behave as in training.

    Args:
        rng: Torch's global streams.
        listed: Generators that the chain knows.
        undo: Gets a callback for each other generator, which restores its state.

    Attributes:
        noise: Where the first number was drawn from a global stream, except by dropout.
        dropout: Names of modules that apply dropout, and where.
        batch_norm: Names of modules that normalise by batch statistics, and where.
        generators: Generators that the chain does not know, their states before the first draw,
            and where it happened.
    """

    def __init__(self, rng: list[Generator], listed: Iterable[Generator], undo: ExitStack) -> None:
        self.noise: Site | None = None
        self.dropout: dict[str, Site] = {}
        self.batch_norm: dict[str, Site] = {}
        self.generators: list[tuple[Generator, Tensor, Site]] = []
        self._known = {id(generator) for generator in (*rng, *listed)}
        self._undo = undo
        self._streams = [(generator, generator.initial_seed()) for generator in rng]
        self._states: list[Tensor] = []

    def before(self, call: Call) -> None:
        """Note generators that the chain does not know, and batch statistics."""
        self._states = [generator.get_state() for generator, _ in self._streams]
        for value in call.kwargs.values():
            if isinstance(value, Generator) and id(value) not in self._known:
                self._known.add(id(value))
                state = value.get_state()
                self.generators.append((value, state, site()))
                self._undo.callback(value.set_state, state)
        if call.func is F.batch_norm and call.kwargs.get("training"):
            self.batch_norm.setdefault(module_name(), site())

    def after(self, call: Call, out: list[Tensor]) -> None:
        """Note whether the operation drew from a global stream."""
        drawn_from = [
            (generator, seed)
            for (generator, seed), state in zip(self._streams, self._states, strict=True)
            if not torch.equal(generator.get_state(), state)
        ]
        if not drawn_from:
            return
        if "dropout" in call.name or call.name in _WITH_DROPOUT:
            self.dropout.setdefault(module_name(), site())
        elif all(generator.initial_seed() == seed for generator, seed in drawn_from):
            self.noise = self.noise or site()  # unless the step seeded the stream itself


_WITH_DROPOUT = {"scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru",
                 "rnn_tanh", "rnn_relu"}  # fmt: skip
