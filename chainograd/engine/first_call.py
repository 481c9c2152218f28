"""What a chain finds out once for tensors of given shapes: costs, plans, slices, unused tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch.nn import Module

from chainograd.blocks.choice import Blocks
from chainograd.blocks.find import FoundBlocks, find_blocks
from chainograd.engine.independence import compare_slices
from chainograd.engine.measure import Kind, measure
from chainograd.engine.microbatch import SlicedStep
from chainograd.engine.run import Run
from chainograd.errors import ChainError
from chainograd.frozen.layers import Saving
from chainograd.metering import metered
from chainograd.plans.budget import Budget, within
from chainograd.plans.plan import RUNS, Advance, Level, Plan, StepCost

PLANS = 16  # that a chain remembers: random `grad_steps` have one each

# Note [First calls]
# Measuring a step, comparing slices and looking for a cut gradient run steps that the plain loop
# does not run. What they find depends on the shapes, dtypes and devices of the state and of the
# arguments, on which of them require a gradient, and on how many buffers are in training. So each
# is done in the first call for which these are new, and leaves no trace.


class FirstCalls:
    """What one chain has found out, by `StepKind.shapes`.

    Attributes:
        costs: What each step costs.
        plans: Plans for a byte budget, by shapes and `grad_steps`.
        compared: Shapes for which slices were compared with the whole.
        unused: Shapes for which nothing that needs a gradient is used.
        saving: Whether frozen layers are worth watching.
        saves: Whether steps take gradients of their own, as far as is known.
        uncut: Steps that take gradients through their blocks, as far as is known.
        last_costs: The costs as measured last.
    """

    def __init__(self) -> None:
        self.costs: dict[Hashable, tuple[StepCost, ...]] = {}
        self.plans: dict[Hashable, Plan] = {}
        self.compared: set[Hashable] = set()
        self.unused: set[Hashable] = set()
        self.saving: dict[Hashable, Saving] = {}
        self.saves = False
        self.uncut: set[int] = set()
        self.last_costs: tuple[StepCost, ...] | None = None
        self._blocks: tuple[list[Module], FoundBlocks] = ([], FoundBlocks())

    def blocks(self, modules: list[Module], choice: Blocks) -> FoundBlocks:
        """Return the blocks of the modules that steps reach, looked for once.

        Args:
            modules: The modules.
            choice: The blocks, or where to look for them.
        """
        before, found = self._blocks
        if list(map(id, before)) != list(map(id, modules)):
            found = find_blocks(modules, choice)
            self._blocks = modules, found
        return found

    def compare_slices(self, run: Run) -> None:
        """Check that a run's steps may run slice by slice.

        Raises:
            ChainError: If they may not.
        """
        if isinstance(run.step, SlicedStep) and run.kind.shapes not in self.compared:
            with run.surroundings.of_trials(run.step.function):
                compare_slices(run, run.step)
            self.compared.add(run.kind.shapes)

    def plan(self, run: Run, budget: Budget, sliced: Callable[[Plan], Plan]) -> Plan:
        """Return the plan of a run for a budget in bytes.

        Args:
            run: The run.
            budget: The budget.
            sliced: Makes a plan one that the chain's steps can carry out.
        """
        shapes = run.kind.shapes
        if shapes not in self.costs:
            self.costs[shapes] = self.measure(run, limit=budget.limits.device)
        self.last_costs = self.costs[shapes]
        key = shapes, run.options.grad_steps
        plan = self.plans.pop(key, None) or within(
            budget, self.last_costs, as_run=lambda plan: run.as_run(sliced(plan))
        )
        self.plans[key] = plan  # the last one now
        if len(self.plans) > PLANS:
            del self.plans[next(iter(self.plans))]
        return plan

    def measure(
        self, run: Run, kind: Kind | None = None, *, limit: int | None = None
    ) -> tuple[StepCost, ...]:
        """Return what each step costs.

        Args:
            run: The run.
            kind: Tells which steps are alike.
            limit: Bytes above which a whole graph is of no use.
        """
        if (saving := self.saving.get(run.kind.shapes)) is not None:
            saving.measured = True
            run.step.options.layers = saving.recording()
        trials = run.surroundings.of_trials(run.step.function)
        with trials, metered(run.x_T.device, compiled=run.kind.compiled):
            self.last_costs = measure(run, kind, limit=limit)
        return self.last_costs

    def refuse_cut_off(self, run: Run, refuse: Callable[[Run], None]) -> None:
        """Look once for a step that cuts every gradient off, where no state needs a gradient.

        Args:
            run: The run, after its forward pass.
            refuse: Runs the steps once more under watch, and raises if it finds such a step.
        """
        first_pass, shapes = run.first_pass, run.kind.shapes
        if any(map(any, first_pass.wanted[1:])) or shapes in self.unused:
            return
        if run.shared.inside or (any(first_pass.wanted[0]) and run.options.passes(0)):
            refuse(run)
            self.unused.add(shapes)


def refuse_uncut(run: Run) -> None:
    """Check that a plan which cuts steps into blocks finds some.

    Raises:
        ChainError: If there are none, or if FSDP2 shards the steps' parameters.
    """
    if not run.plan.is_cut:
        return
    if run.shared.sharded:
        raise ChainError(
            "`plan` cuts steps into blocks or keeps attention's outputs, but FSDP2 shards "
            "parameters of the steps, and it gathers them once for each pass of a step. Pass "
            "`plan='nodes'`."
        )
    if any(level & Level.BLOCKS for level in run.plan.program.levels) and not run.blocks.modules:
        raise ChainError(
            "`plan` cuts steps into blocks, but no blocks were found in the modules that the steps "
            "reach. Name them: `blocks=[…]`, the modules that a step's graph may be cut into."
        )


def refuse_counted_passes(run: Run, *, planned: bool) -> None:
    """Check that hooks which pair forward and backward passes see as many of both.

    Args:
        run: The run, before its first step.
        planned: Whether the plan is the caller's, and no step runs but as it says.

    Raises:
        ChainError: If a step would run forward more often than back.
    """
    if run.kind.counts_passes is None or not run.inputs.tensors:
        return
    again = run.plan.is_cut or any(type(action) in RUNS for action in run.plan.backward)
    light = any(type(a) is Advance and run.options.passes(a.index) for a in run.plan.forward)
    if again or light or not planned:
        raise ChainError(
            f"The steps use a {run.kind.counts_passes}, whose hooks pair each forward pass with a "
            "backward pass (per-sample gradients), but this chain runs steps forward more often "
            "than back. Pass `plan='graph'`, which runs each step once, without `micro_batch`."
        )
