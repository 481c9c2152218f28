"""What a step costs: bytes and seconds, measured once on real tensors or on fake ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from chainograd.engine.run import Run
from chainograd.engine.trial import Trial, TrialRuns
from chainograd.engine.vjp import Vjp
from chainograd.engine.weigh import StepWeighing
from chainograd.plans.plan import StepCost
from chainograd.replay.buffers import buffer_copies

Kind = Callable[[int], Hashable]

# Note [Measured levels]
# 1. A step whose graph can be cut into blocks is measured at every level. Steps whose runs take as
#    many bytes and have graphs with as many operations are alike in that, and one of them is
#    measured.
# 2. The whole graph is measured last, and left out if the blocks together show that it does not fit
#    into the budget, or if memory runs out.


def measure(
    run: Run, kind: Kind | None = None, *, limit: int | None = None
) -> tuple[StepCost, ...]:
    """Return what each step costs, running each kind of step forward and back once.

    A step that adds to gradients of what the steps share runs forward and back once more, because
    then there are sums to add to.

    Args:
        run: The run. Its comparison remembers the states that the steps return.
        kind: Tells which steps are alike; by default every step is measured.
        limit: Bytes above which a whole graph is of no use.

    Returns:
        One cost a step. The first cost measured is measured twice, to be rid of first-call costs.
    """
    seen: dict[Hashable, StepCost] = {}
    result = []
    state, wanted = run.x_T, run.first_pass.wanted[0]
    rng, trial = run.surroundings.rng, Trial.of(run, Vjp(run.shared), limit)
    needed = wanted  # what it would be if the gradient passed all steps
    for i in range(run.plan.num_steps):
        key, before = i if kind is None else kind(i), rng.state()
        trial.surroundings.begin_step()
        runs = TrialRuns(trial, i, state, wanted, before)
        with buffer_copies(run.surroundings.buffers.beforehand()):
            whole = runs._replace(wanted=needed)
            if not seen and not trial.fake:
                StepWeighing(whole).cost()
            if key not in seen:
                seen[key] = StepWeighing(whole).cost()
            if run.options.grad_steps is not None:
                needed = whole.forward().wanted
        result.append(seen[key])
        state, wanted = runs.passed()
        if run.options.grad_steps is None:
            needed = wanted
        if not run.kind.compiled:  # else the code that is not compiled here takes other kernels
            run.comparison.measured.saw(i + 1, state.leaves)
    return tuple(result)
