"""Steps that cannot be repeated, and gradients that are not those of the plain loop."""

import math
import warnings

import pytest
import torch

from chainograd import CheckpointedChain, ScaledInput
from tests.chainograd.preflight.provoked import M, kinds, only
from tests.problems import Counted


def test_a_step_that_counts_its_calls_is_named_with_the_difference(net):
    step = Counted(lambda x, i: net(x, i) + len(step.runs))
    finding = only(step)

    assert (finding.kind, finding.step) == ("not repeatable", 0)
    assert "largest difference" in finding.text
    assert "pure function of its index and its state" in finding.text


def test_a_step_that_fails_when_it_is_run_again_is_named(net):
    steps = iter(range(4))

    def step(x, i):
        return net(x, i) * math.exp(0.0 * next(steps))

    finding = only(step)

    assert finding.kind == "not repeatable"
    assert "StopIteration" in finding.text


def test_a_gradient_that_is_not_that_of_the_plain_loop_is_named_with_the_difference(net):
    def moody(x, i):
        # The same values, but from the fourth call on another gradient.
        return net(ScaledInput(lambda y: y, scale=0.5 if len(step.runs) > 3 else 1.0)(x), i)

    step = Counted(moody)
    (finding,) = CheckpointedChain(step, 3).check(torch.randn(4, 8, requires_grad=True))

    assert finding.kind == "not exact"
    assert "relative error" in finding.text


def test_a_diffusers_scheduler_that_counts_its_steps_is_named(net):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, for numpy 2
        scheduler.set_timesteps(M)

    def step(x, i):
        t = scheduler.timesteps[i]
        return scheduler.step(net(scheduler.scale_model_input(x, t), i), t, x).prev_sample

    assert kinds(step) == ["not repeatable"]
