"""One backward pass through a trajectory: what its links carry on from step to step."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch.autograd import Variable

from chainograd.captured.fsdp import shards_are_asked_for
from chainograd.engine.autograd import keeps_graph, outside_vmap
from chainograd.engine.backward import Sweep
from chainograd.engine.run import Tape
from chainograd.engine.uses import StateUses
from chainograd.state import Cotangents
from chainograd.trajectory.second_order import Attached, Gradients, SecondDerivative


def current_pass(tape: Tape) -> Pass:
    """Return the backward pass that is running, as far as it has come through a tape."""
    number = torch._C._current_graph_task_id()
    run = tape.running.get(number)
    if run is None:
        run = tape.running[number] = Pass(tape)
        # Whatever way the pass ends, autograd lets go of what it was to call, and of the sweep.
        Variable._execution_engine.queue_callback(run.end)
    return run


class Pass:
    """A backward pass that may end at any state: one sweep, and what is to be done at its end."""

    def __init__(self, tape: Tape) -> None:
        if tape.steps.sharded:
            tape.steps.trains_shards = shards_are_asked_for(tape.asked_of_steps)
        self.tape, self.open = tape, True
        # What has a second derivative is kept for it.
        self.sweep = Sweep(tape, keep=bool(keeps_graph()) or torch.is_grad_enabled())
        self.again: SecondDerivative | None = None
        self.shown = ExitStack()
        self.shown.enter_context(tape.log.showing("backward", self.sweep.evaluations))

    def through(self, i: int, given: Cotangents, uses: StateUses) -> Gradients:
        """Send the cotangents of the state after step i through it."""
        sweep, tape = self.sweep, self.tape
        try:
            with outside_vmap(), tape.steps.autocast.off():
                sweep.begin_at(i + 1, given)
                if i + 1 < tape.plan.num_steps:
                    sweep.show(given)
                    sweep.arrive(i + 1)
                # A transform sees the gradient of x_T whole. It is given other states from outside.
                whole = tape.transform is not None and i == 0
                sweep.pass_step(i, () if whole else uses.apart)
                if i == 0:
                    self._arrive_first(uses)
            found = uses.parts(sweep.cotangents, sweep.apart)
            of_steps = [sweep.sums.values[at] for at in tape.asked] if i == tape.first else []
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
        if i == self.tape.first:
            self.end()
            self.again = None
            self.sweep.let_go()
        return found

    def end(self) -> None:
        """Ask what is open, once, and leave the tape as other backward passes are to find it."""
        if not self.open:
            return
        self.open = False
        self.shown.close()
        with self.tape.steps.autocast.off():
            self.tape.log.settle()
        self.sweep.settle()

    def _note(self, i: int) -> None:
        """Note how far the pass has come, so that another may go on from there."""
        sweep, tape = self.sweep, self.tape
        if not sweep.keep:
            tape.left, tape.reached = i, (sweep.position, sweep.state)
        if i == tape.first:
            self.shown.close()
            self.open = False
            try:
                sweep.settle()
            finally:
                sweep.end()
                sweep.let_go()  # autograd may go on for long, and `.grad` takes what nobody holds

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
