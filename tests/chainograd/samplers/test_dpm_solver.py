"""DPM-Solver++(2M): Algorithm 2 of its paper, diffusers' values, and the gradient of its memory."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.samplers import DDIM, DPMSolver2M, MultistepState, NoiseSchedule, time_grid
from tests.oracles import DTYPES, PLANS, assert_a_chain_is_the_plain_loop
from tests.problems import plain

# Diffusers has numpy read torch tensors by a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULE = NoiseSchedule.linear()
UNEVEN = (999, 700, 640, 200, 3, 0, -1)


def run(step, x_T):
    return plain(step, step.num_steps, MultistepState.start(x_T)).x


def model(x, t):
    return torch.sin(2 * x + t.view(-1, 1) / 500)


def gaussian(x, t):
    """The exact noise prediction where the data is N(0.7, 0.3)."""
    a = SCHEDULE.alpha_bars[t].view(-1, 1)
    return (1 - a).sqrt() * (x - a.sqrt() * 0.7) / (a * 0.3 + 1 - a)


class Forgetful(DPMSolver2M):
    """The mistake: the memory's values without its gradient."""

    def forward(self, state, i, *args, **kwargs):
        return super().forward((state[0], state[1].detach()), i, *args, **kwargs)


@pytest.mark.parametrize(
    "grid",
    [UNEVEN, time_grid(8), (*range(999, 0, -50), -1), (999, -1)],
    ids=["uneven", "8 steps", "trailing 20", "1 step"],
)
def test_samples_are_those_of_diffusers(grid):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero",
        timestep_spacing="trailing",
    )  # fmt: skip
    if grid[-2] == 49:
        scheduler.set_timesteps(20)
    else:
        scheduler.set_timesteps(timesteps=list(grid[:-1]))
    assert scheduler.timesteps.tolist() == list(grid[:-1])
    x_T = torch.randn(2, 3)

    theirs = x_T
    for t in scheduler.timesteps:
        theirs = scheduler.step(model(theirs, t.expand(2)), t, theirs).prev_sample

    # Theirs computes in float32 from float32 tables; the chain amplifies by up to 157.
    ours = run(DPMSolver2M(model, SCHEDULE, grid), x_T)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [UNEVEN[:-1], time_grid(20, convention="author")])
def test_samples_are_those_of_the_papers_algorithm_written_out(grid):
    x_T = torch.randn(2, 3, dtype=torch.float64)

    ours = run(DPMSolver2M(model, SCHEDULE, grid), x_T)

    alpha = [math.sqrt(SCHEDULE.alpha_bar(t)) for t in grid]
    sigma = [math.sqrt(1 - SCHEDULE.alpha_bar(t)) for t in grid]
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    h = [None, *(after - before for before, after in pairwise(lam))]
    x, Q = x_T, []
    for i in range(1, len(grid)):
        epsilon = model(x, torch.full((2,), grid[i - 1]))
        Q.append((x - sigma[i - 1] * epsilon) / alpha[i - 1])
        D = Q[-1]
        if i > 1:
            r = h[i - 1] / h[i]
            D = (1 + 1 / (2 * r)) * Q[-1] - 1 / (2 * r) * Q[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (math.exp(-h[i]) - 1) * D
    # Rounding in float64, amplified by up to 157 along the chain.
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(999, -1), (999, 500), (500, 0)])
def test_a_single_step_is_that_of_ddim(grid):
    x = torch.randn(2, 3, dtype=torch.float64)

    ours = run(DPMSolver2M(model, SCHEDULE, grid), x)

    torch.testing.assert_close(ours, DDIM(model, SCHEDULE, grid)(x, 0), rtol=1e-12, atol=1e-12)


def test_the_step_to_clean_data_gives_what_the_network_predicts():
    x = torch.randn(2, 3, dtype=torch.float64)
    step = DPMSolver2M(model, SCHEDULE, (999, 500, -1))

    end = step((x, torch.full_like(x, 9.0)), 1)

    assert torch.equal(end.x, end.previous)
    a = SCHEDULE.alpha_bar(500)
    P = (x - math.sqrt(1 - a) * model(x, torch.full((2,), 500))) / math.sqrt(a)
    torch.testing.assert_close(end.x, P, rtol=1e-12, atol=1e-12)


def test_the_error_falls_with_the_square_of_the_step():
    x_T = torch.randn(16, 3, dtype=torch.float64)
    a_T, a_0 = SCHEDULE.alpha_bar(900), SCHEDULE.alpha_bar(300)

    def error(stride, sampler):
        step = sampler(gaussian, SCHEDULE, range(900, 299, -stride))
        x = run(step, x_T) if sampler is DPMSolver2M else plain(step, step.num_steps, x_T)
        # The exact flow keeps the distance from the mean, in standard deviations.
        shrunk = math.sqrt((a_0 * 0.3 + 1 - a_0) / (a_T * 0.3 + 1 - a_T))
        exact = math.sqrt(a_0) * 0.7 + shrunk * (x_T - math.sqrt(a_T) * 0.7)
        return (x - exact).abs().max().item()

    # Terms of higher order are still 1 % of the error at 30 steps.
    for sampler, order in ((DPMSolver2M, 2), (DDIM, 1)):
        falls = math.log2(error(20, sampler) / error(10, sampler))
        assert falls == pytest.approx(order, abs=0.03)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", ["asyrp", "author"])
def test_a_chain_is_the_plain_loop_to_the_bit(plan, dtype, convention):
    def make(network):
        return DPMSolver2M(network, SCHEDULE, time_grid(6, convention=convention))

    assert_a_chain_is_the_plain_loop(
        make, plan, dtype, start=MultistepState.start, end=lambda state: state.x
    )


def test_the_gradient_along_a_chain_is_that_of_finite_differences():
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    step = DPMSolver2M(lambda x, t: torch.tanh(x @ w), SCHEDULE, (900, 600, 300, 100, -1))
    chain = CheckpointedChain(step, step.num_steps)
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: chain(MultistepState.start(x)).x, (x_T, w))


def test_without_the_gradient_of_its_memory_the_gradient_is_wrong():
    w = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x_T = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def gradients(sampler):
        step = sampler(lambda x, t: torch.tanh(x @ w), SCHEDULE, time_grid(8))
        x_0 = CheckpointedChain(step, 8)(MultistepState.start(x_T)).x
        return x_0, torch.autograd.grad(x_0.square().sum(), (x_T, w))

    x_0, right = gradients(DPMSolver2M)
    same, wrong = gradients(Forgetful)

    assert torch.equal(x_0, same)
    assert all((g - h).norm() > 0.02 * g.norm() for g, h in zip(right, wrong, strict=True))


def test_a_plain_pair_will_do_for_a_state():
    x_T = torch.randn(2, 3)
    step = DPMSolver2M(model, SCHEDULE, time_grid(5))

    x_0, _ = CheckpointedChain(step, 5)(MultistepState(x_T, x_T))

    # The first step looks at no step before it, whatever is there.
    assert torch.equal(x_0, run(step, x_T))
    assert torch.equal(step((x_T, x_T), 2).x, step(MultistepState(x_T, x_T), 2).x)


def test_a_bare_tensor_for_a_state_is_refused_with_the_way_out():
    step = DPMSolver2M(model, SCHEDULE, time_grid(5))

    with pytest.raises(TypeError, match=r"a pair \(x, previous\), got a tensor .*start\(x_T\)"):
        step(torch.zeros(2, 3), 0)


def test_the_predicted_data_is_clamped_when_asked():
    x_T = 5 * torch.randn(4, 3)

    clamped = run(DPMSolver2M(model, SCHEDULE, time_grid(5), clamp=1.0), x_T)

    assert clamped.abs().max() == 1
    assert run(DPMSolver2M(model, SCHEDULE, time_grid(5)), x_T).abs().max() > 1


def test_the_network_is_called_once_a_step_with_whatever_the_chain_is_called_with():
    seen = []

    def model(x, t, *args, **kwargs):
        seen.append((t.dtype, t.tolist(), args, kwargs))
        return x.bfloat16()

    state, step = MultistepState.start(torch.zeros(2, 3)), DPMSolver2M(model, SCHEDULE, (9, 5, -1))
    for i in range(step.num_steps):
        state = step(state, i, "class", scale=2)

    assert {leaf.dtype for leaf in state} == {torch.float32}
    assert seen == [(torch.int64, [t, t], ("class",), {"scale": 2}) for t in (9, 5)]


@pytest.mark.parametrize("grid", [(), (999,), (999, 500, 500, 0), (0, 500), (1000, 0), (5, -2)])
def test_a_grid_that_does_not_fall_inside_the_schedule_is_refused(grid):
    with pytest.raises(ValueError, match=r"`grid` must hold two .* between -1 and 999.*time_grid"):
        DPMSolver2M(model, SCHEDULE, grid)
