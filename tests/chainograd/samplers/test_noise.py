"""Noise as a value: a function of a seed and an index, and of nothing else."""

import random

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import ChainError, CheckpointedChain
from chainograd.samplers import DDIM, NoiseSchedule, SeededNoise, time_grid
from tests.oracles import DTYPES, PLANS, assert_a_chain_is_the_plain_loop
from tests.problems import plain

SCHEDULE = NoiseSchedule.linear()


def test_noise_is_the_same_in_any_order_and_any_number_of_times():
    noise, x = SeededNoise(7), torch.zeros(2, 3)
    first = [noise(x, i) for i in range(6)]

    again = {i: SeededNoise(7)(x + 1, i) for i in (4, 0, 5, 3, 1, 2, 0)}

    assert all(torch.equal(again[i], first[i]) for i in range(6))


def test_no_global_stream_is_moved_or_looked_at():
    def drawn():
        return torch.rand(1).item(), np.random.rand(), random.random()

    def seed():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    seed()
    expected = drawn()
    seed()

    first = SeededNoise(7)(torch.zeros(3), 0)

    assert drawn() == expected
    assert torch.equal(SeededNoise(7)(torch.zeros(3), 0), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_gets_the_numbers_of_float32_up_to_rounding(dtype):
    noise, x = SeededNoise(7), torch.zeros(50)

    z = noise(x.to(dtype), 3)

    assert z.dtype == dtype
    assert torch.equal(z, noise(x, 3).to(dtype))


def test_noise_comes_to_the_device_and_in_the_shape_of_the_state():
    noise = SeededNoise(7)

    assert noise(torch.zeros(2, 3, 4, device="meta"), 0).device.type == "meta"
    assert noise(torch.zeros(2, 3, 4), 0).shape == (2, 3, 4)
    assert noise(torch.zeros(()), 0).shape == ()
    assert noise(torch.zeros(2, 0), 0).shape == (2, 0)


def test_noise_is_standard_normal():
    z = SeededNoise(1)(torch.zeros(200_000, dtype=torch.float64), 2)

    # Of 200,000 numbers the mean strays by 0.0022, the second moment by 0.0032, the fourth by
    # 0.022: four times that.
    assert z.mean().item() == pytest.approx(0, abs=0.009)
    assert z.square().mean().item() == pytest.approx(1, abs=0.013)
    assert z.pow(4).mean().item() == pytest.approx(3, abs=0.09)


def test_neighbouring_seeds_and_indices_give_independent_noise():
    x = torch.zeros(4000, dtype=torch.float64)
    pairs = [(seed, i) for seed in (-1, 0, 1, 2, 2**32, 2**33) for i in range(6)]
    z = torch.stack([SeededNoise(seed)(x, i) for seed, i in pairs])

    correlations = z @ z.T / 4000 - torch.diag(z.square().mean(1))

    # A correlation strays by 1/sqrt(4000) = 0.016; the largest of 630 by about 3.3 times that.
    assert correlations.abs().max() < 5 * 0.016


def test_fake_tensors_get_fake_noise():
    with FakeTensorMode():
        x = torch.empty(2, 3)

        assert (x + SeededNoise(0)(x, 0)).shape == (2, 3)


def test_under_vmap_every_sample_gets_the_same_noise():
    x = torch.zeros(4, 3)

    z = torch.func.vmap(lambda x: x + SeededNoise(0)(x, 1))(x)

    assert torch.equal(z, SeededNoise(0)(x[0], 1).expand(4, 3))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_of_stochastic_ddim_is_the_plain_loop_to_the_bit(plan, dtype):
    def make(network):
        return DDIM(network, SCHEDULE, time_grid(6), eta=0.7, noise=SeededNoise(3))

    assert_a_chain_is_the_plain_loop(make, plan, dtype)


def test_another_seed_gives_another_sample_and_the_same_seed_the_same():
    def sample(seed):
        step = DDIM(lambda x, t: x / 2, SCHEDULE, time_grid(5), eta=1.0, noise=SeededNoise(seed))
        return plain(step, 5, torch.ones(2, 3))

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_slices_of_a_batch_are_refused_since_they_would_get_the_same_noise():
    step = DDIM(lambda x, t: x / 2, SCHEDULE, time_grid(5), eta=1.0, noise=SeededNoise(1))
    x_T = torch.ones(4, 3, requires_grad=True)

    with pytest.raises(ChainError, match="micro_batch"):
        CheckpointedChain(step, 5, micro_batch=2)(x_T)


@pytest.mark.parametrize("seed", [0.5, None, "0"])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match="`seed` must be an integer, got"):
        SeededNoise(seed)


def test_a_seed_of_numpy_is_as_good_as_any():
    x = torch.zeros(3)

    assert torch.equal(SeededNoise(np.int64(-5))(x, 0), SeededNoise(-5)(x, 0))
