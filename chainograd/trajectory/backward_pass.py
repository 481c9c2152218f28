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
        # However the pass ends, autograd then releases its callbacks, and with them this object.
        call_after_backward(current.end)
    return current


class TrajectoryPass:
    """A backward pass that may end at any state, as its links carry it on."""

    def __init__(self, run: Run) -> None:
        if run.shared.sharded:
            run.shared.trains_shards = shards_are_asked_for(run.inputs.steps_tensors)
        self.run, self.open = run, True
        # What has a second derivative is kept for it.
        self.backward = BackwardPass(run, keep=bool(keeps_graph()) or torch.is_grad_enabled())
        self.second: SecondDerivative | None = None
        self.bar = ExitStack()
        self.bar.enter_context(run.log.showing("backward", self.backward.evaluations))

    def through(self, i: int, given: Cotangents, uses: StateUses) -> Gradients:
        """Send the cotangents of the state after step i through it."""
        backward, run = self.backward, self.run
        last = i == run.first_pass.first
        try:
            with outside_vmap(), backward.vjp.autocast.off():
                backward.begin_at(i + 1, given)
                if i + 1 < run.plan.num_steps:
                    backward.fill_grad(given)
                    backward.arrive(i + 1)
                # A transform sees the gradient of x_T whole. It is given other states from outside.
                whole = run.options.transform is not None and i == 0
                backward.pass_step(i, () if whole else uses.apart)
                if i == 0:
                    self._arrive_first(uses)
            found = uses.parts(backward.cotangents, backward.apart)
            of_steps = (
                [backward.accumulator.values[at] for at in run.inputs.of_steps] if last else []
            )
            backward.cotangents, backward.apart = {}, []
            self._note(i)
        except BaseException:
            self._fail()
            raise
        return Gradients(found, of_steps)

    def through_differentiably(
        self, i: int, given: Cotangents, uses: StateUses, attached: Attached
    ) -> Gradients:
        """Do the same by operations that have a derivative."""
        self.second = self.second or SecondDerivative(self.backward)
        found = self.second.through(i, given, uses, attached)
        if i == self.run.first_pass.first:
            self.end()
            self.second = None
            self.backward.release()
        return found

    def end(self) -> None:
        """Ask what is open, once, and leave the run as other backward passes are to find it."""
        if not self.open:
            return
        self.open = False
        self.bar.close()
        with self.backward.vjp.autocast.off():
            self.run.log.settle()
        self.run.comparison.settle(self.run.first_pass.first)

    def _note(self, i: int) -> None:
        """Note how far the pass has come, so that another may go on from there."""
        backward, run, memory = self.backward, self.run, self.run.memory
        if not backward.keep:
            memory.left, memory.reached = i, (backward.position, backward.state)
        if i == run.first_pass.first:
            self.bar.close()
            self.open = False
            try:
                run.comparison.settle(i)
            finally:
                backward.end()
                # Autograd may go on for long, and `.grad` takes over what nobody holds.
                backward.release()

    def _fail(self) -> None:
        if self.open:
            self.open = False
            self.bar.close()
            self.backward.end()

    def _arrive_first(self, uses: StateUses) -> None:
        """Turn to x_T: what was told apart is added up for all but its own gradient."""
        backward, alone = self.backward, self.backward.cotangents
        if not any(backward.apart):
            backward.arrive(0)
            return
        pairs = zip(uses.groups, backward.apart, strict=True)
        whole = {places[0]: sum(parts[1:], parts[0]) for places, parts in pairs if parts}
        backward.cotangents = {**alone, **whole}
        backward.fill_grad(whole)
        backward.arrive(0)
        backward.cotangents = alone
