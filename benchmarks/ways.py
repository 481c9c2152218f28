"""Methods of going back through M steps, each as a value: other methods, and chains.

plain loop           every graph is kept                                M evaluations
checkpoint           `torch.utils.checkpoint` around each step          2M
model's own          the model checkpoints its blocks, in a plain loop  M, each 4/3 of the work
as published         Algorithm 1 written out: the last step runs twice  2M
nodes                the default of `CheckpointedChain`                 2M - 1
budget 1/2, 1/4      the fastest plan within half or a quarter of the plain loop's memory
binomial             sqrt(M) nodes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isqrt
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from working import working
from workloads import Workload

from chainograd import CheckpointedChain, Plan, StepCost, binomial, keep_last, within

Run = Callable[[], None]


@dataclass(frozen=True)
class Way:
    """A method of going back through the steps.

    Attributes:
        name: Name in tables.
        prepared: A function from a workload to a run, which samples and runs backward once. It
            also makes the plan.
        fits: Whether a workload supports the method.
    """

    name: str
    prepared: Callable[[Workload], Run]
    fits: Callable[[Workload], bool] = lambda workload: True


def plain(w: Workload) -> Run:
    def run() -> None:
        x = w.x_T
        for i in range(w.M):
            x = w.step(x, i, *w.args)
        w.loss(x).backward()

    return run


def each_checkpointed(w: Workload) -> Run:
    def run() -> None:
        x: Any = w.x_T
        for i in range(w.M):
            x = checkpoint(w.step, x, i, *w.args, use_reentrant=False)
        w.loss(x).backward()

    return run


def as_published(w: Workload) -> Run:
    """Return Algorithm 1: keep nodes without graphs, then run each step again, last step first."""

    def run() -> None:
        nodes = [w.x_T.detach()]
        with torch.no_grad():
            for i in range(w.M):
                nodes.append(w.step(nodes[-1], i, *w.args))
        x_0 = nodes.pop().requires_grad_()
        w.loss(x_0).backward()
        g = x_0.grad
        for i in reversed(range(w.M)):
            x = nodes.pop().requires_grad_()
            w.step(x, i, *w.args).backward(g)
            g = x.grad
        if w.x_T.requires_grad:
            w.x_T.grad = g

    return run


def chained(**options: Any) -> Callable[[Workload], Run]:
    """Return the method of a chain with these options; callable options take the workload."""

    def prepared(w: Workload) -> Run:
        own: dict[str, Any] = {
            key: value(w) if callable(value) else value for key, value in options.items()
        }
        own.setdefault("frozen", "off")  # only methods named "frozen" use frozen layers
        # Whole steps, which is what these figures compare; `what_fits.py` is about levels.
        chain = CheckpointedChain(w.step, w.M, blocks=None, **own)
        if "micro_batch" in own:  # outside the measurement: it compares slices with the batch
            chain(w.x_T, *w.args)

        def run() -> None:
            w.loss(chain(w.x_T, *w.args)).backward()

        return run

    return prepared


def itself(way: Callable[[Workload], Run]) -> Callable[[Workload], Run]:
    """Return the same method with the model's own gradient checkpointing."""

    def prepared(w: Workload) -> Run:
        run = way(w)

        def with_its_own() -> None:
            with _own_checkpointing(w):
                run()

        return with_its_own

    return prepared


def costs(w: Workload, **options: Any) -> tuple[StepCost, ...]:
    """Return the steps' costs in bytes, with work in place of seconds.

    Plans made from these costs are therefore the same on every machine.
    """
    x_T = w.x_T.detach().requires_grad_(w.x_T.requires_grad)
    options = {"frozen": "off", **options}
    chain = CheckpointedChain(w.step, w.M, blocks=None, **options)
    measured = chain.measure(x_T, *w.args, kind=w.kind)
    works: dict[Any, tuple[int, int]] = {}
    for i in range(w.M):
        if w.kind(i) not in works:
            works[w.kind(i)] = step_work(w, i)
    return tuple(
        replace(c, forward_seconds=float(F), backward_seconds=float(B))
        for c, (F, B) in ((c, works[w.kind(i)]) for i, c in enumerate(measured))
    )


def step_work(w: Workload, i: int) -> tuple[int, int]:
    """Return F and B, the work of a step's forward and backward pass."""
    x = w.x_T.detach().requires_grad_()
    with working() as forward, torch.no_grad():
        w.step(x, i, *w.args)
    y = w.step(x, i, *w.args)
    with working() as backward:
        trained = [t for t in w.wanted if t is not w.x_T]
        torch.autograd.grad(y, [x, *trained], torch.ones_like(y), allow_unused=True)
    return forward.flops, backward.flops


def part(fraction: Fraction, **options: Any) -> Callable[[Workload], Plan]:
    """Return the plan within a fraction of the plain loop's memory."""

    def plan(w: Workload) -> Plan:
        graphs = keep_last(w.M, w.M).with_costs(costs(w)).peak_bytes
        own = costs(w, **options)
        least = binomial(w.M, slots=1).with_costs(own).peak_bytes
        return within(max(int(graphs * fraction), least), own)

    return plan


def root(w: Workload) -> Plan:
    """Return the plan with sqrt(M) nodes."""
    return binomial(w.M, slots=max(isqrt(w.M), 1))


def _quarter(w: Workload) -> int:
    return max(len(w.x_T) // 4, 1)


def _frozen(w: Workload) -> bool:
    return w.frozen


def _has_its_own(w: Workload) -> bool:
    return w.checkpoint_itself is not None


def _can_be_cut(w: Workload) -> bool:
    return len(w.x_T) > 1


WAYS = {
    way.name: way
    for way in (
        Way("plain loop", plain),
        Way("checkpoint", each_checkpointed),
        Way("model's own", itself(plain), _has_its_own),
        Way("as published", as_published),
        Way("nodes", chained()),
        Way("budget 1/2", chained(plan=part(Fraction(1, 2)))),
        Way("budget 1/4", chained(plan=part(Fraction(1, 4)))),
        Way("binomial", chained(plan=root)),
        Way("nodes, model's own", itself(chained()), _has_its_own),
        Way("graph, frozen", chained(plan="graph", frozen="auto"), _frozen),
        Way("nodes, frozen", chained(frozen="auto"), _frozen),
        Way("budget 1/4, frozen", chained(plan=part(Fraction(1, 4), frozen="auto"), frozen="auto"),
            _frozen),
        Way("nodes, sliced", chained(micro_batch=_quarter), _can_be_cut),
        Way("nodes, frozen, sliced", chained(micro_batch=_quarter, frozen="auto"),
            lambda w: w.frozen and _can_be_cut(w)),
    )
}  # fmt: skip


@contextmanager
def _own_checkpointing(w: Workload) -> Iterator[None]:
    assert w.checkpoint_itself is not None
    w.checkpoint_itself(True)
    try:
        yield
    finally:
        w.checkpoint_itself(False)
