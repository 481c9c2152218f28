"""How far a state travels from the call of a chain to the user's step."""

import sys
from pathlib import Path

import pytest
import torch

import chainograd
from chainograd import CheckpointedChain

ROOT = str(Path(chainograd.__file__).parent)


def frames_to_a_step(call, **options):
    """Return how many of the library's frames lie between a call and each run of the step."""
    counts = []
    w = torch.ones(4, requires_grad=True)

    def step(x, i):
        frame, count = sys._getframe(1), 0
        while frame.f_code is not caller.__code__:
            count += frame.f_code.co_filename.startswith(ROOT)
            frame = frame.f_back
        counts.append(count)
        return torch.tanh(w * x)

    def caller():
        return call(CheckpointedChain(step, 3, **options), torch.ones(6, 4))

    caller()
    return counts


@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_six_frames_lie_between_a_call_and_the_step(plan):
    frames = frames_to_a_step(lambda chain, x: chain(x), plan=plan)

    assert len(frames) == 3
    assert max(frames) <= 6


def test_six_frames_lie_between_a_call_for_all_states_and_the_step():
    assert max(frames_to_a_step(lambda chain, x: chain.trajectory(x))) <= 6


def test_slices_need_two_more_frames():
    frames = frames_to_a_step(lambda chain, x: chain(x), micro_batch=2)

    assert max(frames[-9:]) <= 8  # 3 steps with 3 slices each; before, slices are compared
