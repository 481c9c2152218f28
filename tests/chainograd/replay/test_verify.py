"""What a state that is run again is compared with: its node, a digest, or a sample of it."""

import numpy
import pytest
import torch

from chainograd import CheckpointedChain, ReplayError, Store, binomial
from tests.problems import plain

M = 6


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1), binomial(M, slots=3)], ids=str)
@pytest.mark.parametrize("verify", ["exact", "close"])
@pytest.mark.parametrize("place", ["device", "folder"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_other_noise_is_noticed_under_every_plan_and_store(plan, verify, place, dtype, tmp_path):
    w = torch.ones(300, requires_grad=True)
    unnamed = torch.Generator()

    def step(x, i):
        return torch.sin(w * x) + torch.randn(300, generator=unnamed)

    store = Store(tmp_path if place == "folder" else place, dtype)
    y = CheckpointedChain(step, M, plan=plan, verify=verify, store=store)(torch.ones(300))
    with pytest.raises(ReplayError, match=r"Step \d"):
        y.sum().backward()


@pytest.mark.parametrize("plan", ["nodes", binomial(M, slots=1), binomial(M, slots=3)], ids=str)
@pytest.mark.parametrize(
    "extra", [[], [float("nan"), 1.0], [float("inf"), 1.0]], ids=["empty", "nan", "inf"]
)
def test_close_takes_empty_and_endless_states_and_sees_through_them(plan, extra):
    w = torch.ones(3, requires_grad=True)
    calls = []

    def step(state, i):
        x, extra, off = state
        calls.append(i)
        return torch.sin(w * x), extra * (1 + off * 1e-2 * len(calls)), off

    def run(off):
        state = (torch.ones(3), torch.tensor(extra), off)
        CheckpointedChain(step, M, plan=plan, verify="close")(state)[0].sum().backward()

    run(0)
    if extra:
        with pytest.raises(ReplayError):
            run(1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_a_difference_in_flags_and_counts_is_told(dtype):
    w = torch.ones(3, requires_grad=True)
    calls = []

    def step(state, i):
        calls.append(i)
        return torch.sin(w * state[0]), torch.tensor([len(calls) <= M]).to(dtype)

    y = CheckpointedChain(step, M)((torch.ones(3), torch.ones(1).to(dtype)))[0]
    with pytest.raises(ReplayError, match="the largest difference is 1"):
        y.sum().backward()


def test_noise_of_another_generator_of_numpy_is_replayed():
    w = torch.ones(3, requires_grad=True)
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))

    def step(x, i):
        return torch.sin(w * x) * numpy.random.rand()

    def gradient(run):
        numpy.random.seed(3)
        return torch.autograd.grad(run(torch.ones(3)).sum(), w)[0]

    try:
        expected = gradient(lambda x: plain(step, M, x))
        for plan in ("nodes", binomial(M, slots=2)):
            assert torch.equal(gradient(CheckpointedChain(step, M, plan=plan)), expected)
    finally:
        numpy.random.set_bit_generator(before)
