"""What others do within a sampler's steps: which blocks are checkpointed, and what is kept of them.

A way says how a step calls the model's blocks, and whether a checkpoint lies around the step too.

plain              every graph is kept
step               `torch.utils.checkpoint` around each step
block              around each block: diffusers' ``enable_gradient_checkpointing``
nested             around each step, and in it around each block
every 2nd          around every second block
2 of 4             around the first two of each four blocks, each by itself
attention kept     around each block, and attention's outputs are kept: torch's selective policy
segments 2/4       one checkpoint around two blocks, the next two without: SimpleTuner's segments
block, on host     around each block, and what enters it waits on the host: `save_on_cpu`
remat              torch-remat around each block, the attention of which is a region that is kept
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from models_of_today import Built
from peer_blocks import (
    BlockCall,
    CallBlock,
    again,
    attention_kept,
    in_segments,
    segments,
    some,
)
from peer_host import Host, on_host
from peer_remat import attention_is_a_region, is_installed, remat
from step_facts import blocks_called_by
from torch import Tensor

Run = Callable[[Tensor, int, Callable[[], None]], None]
"""Samples M steps from a state, calling back after each, and runs backward."""


@dataclass(frozen=True)
class Way:
    """A way of going back through a sampler.

    Attributes:
        name: Its name in tables.
        calls: Returns, at the beginning of each step, how the step's blocks are called; None calls
            them as they are. It is given the step's calls of blocks.
        each_step: Whether a checkpoint lies around each step.
        fits: Whether a model with these calls of blocks can be run so.
        around: A context around the whole run.
    """

    name: str
    calls: Callable[[list[BlockCall]], CallBlock] | None = None
    each_step: bool = False
    fits: Callable[[list[BlockCall]], bool] = lambda calls: True
    around: Callable[[Built, Host], AbstractContextManager[Any]] = lambda built, host: nullcontext()


def prepared(built: Built, way: Way, calls: list[BlockCall], host: Host) -> Run:
    """Return a run of a way. Its loss is the mean square."""

    def step(x: Tensor, i: int, *conditions: Tensor) -> Tensor:
        with blocks_called_by(built.net, way.calls(calls) if way.calls else None):
            return built.step(x, i, *conditions)

    run_step = partial(again, step) if way.each_step else step

    def run(x: Tensor, M: int, after_step: Callable[[], None]) -> None:
        with way.around(built, host):
            for i in range(M):
                x = run_step(x, i, *built.conditions)
                after_step()
            x.square().mean().backward()

    return run


every, every_2nd = some(lambda k: True), some(lambda k: k % 2 == 0)
two_of_4 = some(lambda k: k % 4 < 2)
WAYS = {
    way.name: way
    for way in (
        Way("plain"),
        Way("step", each_step=True),
        Way("block", every),
        Way("nested", every, each_step=True),
        Way("every 2nd", every_2nd),
        Way("2 of 4", two_of_4),
        Way("attention kept", attention_kept),
        Way("segments 2/4", segments, fits=in_segments),
        Way("step, every 2nd", every_2nd, each_step=True),
        Way("step, 2 of 4", two_of_4, each_step=True),
        Way("step, attention kept", attention_kept, each_step=True),
        Way("step, segments 2/4", segments, each_step=True, fits=in_segments),
        Way("block, on host", every, around=on_host),
        Way("remat", remat, fits=is_installed, around=attention_is_a_region),
    )
}
