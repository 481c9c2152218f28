"""Every scheduler that diffusers exports."""

import diffusers.schedulers
import pytest

from chainograd import binomial
from chainograd.adapters.diffusers.protocols import DISCRETE
from tests.chainograd.adapters.diffusers.conformance import compare
from tests.chainograd.adapters.diffusers.scheduler_cases import Case, cases

CASES = [case for case in cases() if case.name not in DISCRETE]
pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own, about options it changes


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.label}")
def test_a_scheduler_gives_the_loss_of_its_loop_to_the_bit_and_its_gradients(case):
    assert compare(case).exact


@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler", "SASolverScheduler",
     "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "LCMScheduler", "ScoreSdeVeScheduler"],
)  # fmt: skip
def test_a_scheduler_with_a_history_or_noise_is_exact_when_few_nodes_are_kept(name):
    case = next(case for case in CASES if case.name == name)
    calls = compare(case).calls

    assert compare(case, plan=binomial(calls, slots=2)).exact


@pytest.mark.parametrize("name", DISCRETE)
def test_a_scheduler_of_tokens_is_refused_by_name(name):
    needed = {"VQDiffusionScheduler": "num_vec_classes", "AmusedScheduler": "mask_token_id"}
    config = {needed[name]: 5} if name in needed else {}

    with pytest.raises(ValueError, match=f"{name} samples discrete tokens"):
        compare(Case(name, config))


def test_no_scheduler_is_left_out():
    exported = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}

    assert {case.name for case in CASES} | set(DISCRETE) == exported


def test_multistep_solvers_are_run_with_three_options_or_more():
    histories = {"model_outputs", "ets", "derivatives", "prev_derivative"}
    for name in {case.name for case in CASES}:
        scheduler = next(case for case in CASES if case.name == name).scheduler()
        if histories & vars(scheduler).keys():
            assert sum(case.name == name for case in CASES) >= 3, name
