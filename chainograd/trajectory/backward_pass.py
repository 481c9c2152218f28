"""One backward pass through a trajectory: what its links carry on from step to step."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from chainograd.captured.fsdp import shards_are_asked_for
from chainograd.engine.backward import BackwardPass
from chainograd.engine.run import Run
from chainograd.engine.uses import StateUses
from chainograd.state import Cotangents
from chainograd.torch_internals.autograd import backward_id, call_after_backward, keeps_graph
from chainograd.torch_internals.transforms import outside_vmap
from chainograd.trajectory.second_order import Attached, Gradients, SecondDerivative


def current_pass(run: Run) -> TrajectoryPass:
    """Return the backward pass that is running, as far as it has come through a run."""
    number = backward_id()
    current = run.running.get(number)
    if current is None:
        current = run.running[number] = TrajectoryPass(run)
        # Whatever way the pass ends, autograd lets go of what it was to call, and of the sweep.
        call_after_backward(current.end)
    return current


class TrajectoryPass:
    """A backward pass that may end at any state: one sweep, and what is to be done at its end."""

    def __init__(self, run: Run) -> None:
        if run.steps.sharded:
            run.steps.trains_shards = shards_are_asked_for(run.asked_of_steps)
        self.run, self.open = run, True
        # What has a second derivative is kept for it.
        self.sweep = BackwardPass(run, keep=bool(keeps_graph()) or torch.is_grad_enabled())
        self.again: SecondDerivative | None = None
        self.shown = ExitStack()
        self.shown.enter_context(run.log.showing("backward", self.sweep.evaluations))

    def through(self, i: int, given: Cotangents, uses: StateUses) -> Gradients:
        """Send the cotangents of the state after step i through it."""
        sweep, run = self.sweep, self.run
        try:
            with outside_vmap(), run.steps.autocast.off():
                sweep.begin_at(i + 1, given)
                if i + 1 < run.plan.num_steps:
                    sweep.show(given)
                    sweep.arrive(i + 1)
                # A transform sees the gradient of x_T whole. It is given other states from outside.
                whole = run.transform is not None and i == 0
                sweep.pass_step(i, () if whole else uses.apart)
                if i == 0:
                    self._arrive_first(uses)
            found = uses.parts(sweep.cotangents, sweep.apart)
            of_steps = [sweep.accumulator.values[at] for at in run.asked] if i == run.first else []
            sweep.cotangents, sweep.apart = {}, []
            self._note(i)
        except BaseException:
            self._fail()
            raise
        return Gradients(found, of_steps)

    def through_differentiably(
        self, i: int, given: Cotangents, uses: StateUses, attached: Attached
    ) -> Gradients:
        """Do the same by operations that have a derivative."""
        self.again = self.again or SecondDerivative(self.sweep)
        found = self.again.through(i, given, uses, attached)
        if i == self.run.first:
            self.end()
            self.again = None
            self.sweep.release()
        return found

    def end(self) -> None:
        """Ask what is open, once, and leave the run as other backward passes are to find it."""
        if not self.open:
            return
        self.open = False
        self.shown.close()
        with self.run.steps.autocast.off():
            self.run.log.settle()
        self.sweep.settle()

    def _note(self, i: int) -> None:
        """Note how far the pass has come, so that another may go on from there."""
        sweep, run = self.sweep, self.run
        if not sweep.keep:
            run.left, run.reached = i, (sweep.position, sweep.state)
        if i == run.first:
            self.shown.close()
            self.open = False
            try:
                sweep.settle()
            finally:
                sweep.end()
                sweep.release()  # autograd may go on for long, and `.grad` takes what nobody holds

    def _fail(self) -> None:
        if self.open:
            self.open = False
            self.shown.close()
            self.sweep.end()

    def _arrive_first(self, uses: StateUses) -> None:
        """Turn to x_T: what was told apart is added up for all but its own gradient."""
        sweep, alone = self.sweep, self.sweep.cotangents
        if not any(sweep.apart):
            sweep.arrive(0)
            return
        pairs = zip(uses.groups, sweep.apart, strict=True)
        whole = {places[0]: sum(parts[1:], parts[0]) for places, parts in pairs if parts}
        sweep.cotangents = {**alone, **whole}
        sweep.show(whole)
        sweep.arrive(0)
        sweep.cotangents = alone
