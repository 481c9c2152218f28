"""The options of a chain are checked before anything runs."""

import functools
import importlib.util

import numpy as np
import pytest
import torch

from chainograd import CheckpointedChain, binomial, keep_last, options, within
from chainograd.plans.budget import parse_bytes
from tests.problems import Counted

M = 4


class Many:
    """Something whose text is long."""

    def __repr__(self):
        return "x" * 1000


NET = torch.nn.Linear(2, 2)
BAD = [
    ({"step": None}, TypeError, r"`step`.*callable as step\(x, i, …\), got None"),
    ({"step": Many()}, TypeError, r"got a Many\. Pass a function"),
    ({"step": 3}, TypeError, "`step`.*callable.*got 3"),
    ({"num_steps": 0}, ValueError, "num_steps.*at least 1, got 0"),
    ({"num_steps": 2.5}, ValueError, "`num_steps`.*got 2.5"),
    ({"num_steps": True}, ValueError, "`num_steps`.*got True"),
    ({"num_steps": "3"}, ValueError, "`num_steps`.*got '3'"),
    ({"plan": "node"}, ValueError, "'nodes', 'graph'.*'node'"),
    ({"plan": None}, ValueError, "`plan`.*'nodes', 'graph'.*got None"),
    ({"plan": 3.5}, ValueError, "`plan`.*got 3.5"),
    ({"plan": True}, ValueError, "`plan`.*got True"),
    ({"plan": 0}, ValueError, "`plan`.*got 0"),
    ({"plan": "8IB"}, ValueError, "`plan`.*'8IB'.*'8GiB'"),
    ({"params": NET}, TypeError, r"`params=module.parameters\(\)`"),
    ({"params": torch.ones(1)}, TypeError, r"params=\[tensor\]"),
    ({"params": [3]}, TypeError, r"`params` must hold tensors.*entry 0 is 3"),
    ({"params": 3}, TypeError, "`params` must be a list of tensors.*got 3"),
    ({"generators": [3]}, TypeError, "`generators` must hold.*entry 0 is 3"),
    ({"generators": torch.Generator()}, TypeError, r"`generators=\[generator\]`"),
    ({"generators": "cpu"}, TypeError, "`generators` must be a list.*got 'cpu'"),
    ({"store": 3}, ValueError, "`store`.*'device', 'host'.*got 3"),
    ({"store": None}, ValueError, "`store`.*got None"),
    ({"micro_batch": True}, ValueError, "`micro_batch`.*got True"),
    ({"micro_batch": 0}, ValueError, "`micro_batch`.*got 0"),
    ({"micro_batch": 2.0}, ValueError, "`micro_batch`.*got 2.0"),
    ({"frozen": True}, ValueError, "`frozen` must be one of.*got True"),
    ({"frozen": "all"}, ValueError, "`frozen` must be one of.*got 'all'"),
    ({"verify": "no"}, ValueError, "`verify` must be one of.*got 'no'"),
    ({"verify": ["exact"]}, ValueError, "`verify` must be one of"),
    ({"grad_steps": 0}, ValueError, "1 … 4, got 0"),
    ({"grad_steps": []}, ValueError, "`grad_steps`.*got"),
    ({"grad_steps": True}, TypeError, "`grad_steps`.*got True"),
    ({"grad_steps": "12"}, TypeError, "`grad_steps`.*got '12'"),
    ({"grad_steps": 2.5}, TypeError, "`grad_steps`.*got 2.5"),
    ({"grad_steps": {0.5}}, ValueError, "`grad_steps` must hold indices"),
    ({"grad_steps": [True]}, ValueError, "`grad_steps` must hold indices"),
    ({"grad_steps": [M]}, ValueError, "`grad_steps` must hold indices in 0 … 3"),
    ({"grad_steps": np.int64(M + 1)}, ValueError, "`grad_steps`.*1 … 4, got 5"),
    ({"grad_transform": 3}, TypeError, r"`grad_transform` must be callable as f\(i, g\)"),
    ({"progress": "yes"}, TypeError, "`progress` must be True or False, got 'yes'"),
]


IDS = [f"{next(iter(row[0]))} {at}" for at, row in enumerate(BAD)]


@pytest.mark.parametrize(("changed", "error", "message"), BAD, ids=IDS)
def test_a_wrong_option_is_refused_by_name_and_value_before_anything_runs(changed, error, message):
    step = Counted(lambda x, i: x)
    with pytest.raises(error, match=message):
        CheckpointedChain(**{"step": step, "num_steps": M, **changed})
    assert not step.runs


def test_integers_of_numpy_are_integers_everywhere():
    net, x = torch.nn.Linear(2, 2), torch.ones(4, 2)

    def gradient(count, **options):
        chain = CheckpointedChain(lambda x, i: torch.tanh(net(x)), count(M), **options)
        assert type(chain.num_steps) is int
        return torch.autograd.grad(chain(x).sum(), net.weight)[0]

    for make in (
        lambda n: {"micro_batch": n(2)},
        lambda n: {"grad_steps": n(2)},
        lambda n: {"grad_steps": {n(2), n(3)}},
        lambda n: {"grad_steps": lambda num_steps: n(2)},
        lambda n: {"plan": n(10**9)},
        lambda n: {"plan": binomial(n(M), slots=n(2))},
        lambda n: {"plan": keep_last(n(M), n(2))},
    ):
        assert torch.equal(gradient(np.int64, **make(np.int64)), gradient(int, **make(int)))
    assert parse_bytes(np.int32(7)) == 7


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: keep_last(4, True), "k"),
        (lambda: keep_last(4.0, 1), "num_steps"),
        (lambda: binomial(4, slots="2"), "slots"),
    ],
)
def test_a_number_that_is_not_an_integer_makes_no_plan(make, name):
    with pytest.raises(TypeError, match=f"`{name}` must be an integer"):
        make()


@pytest.mark.parametrize("text", ["8IB", "IB", "8 I", "8GI", "", "GiB", "-1GiB", "0B", "nan"])
def test_text_that_does_not_say_a_number_of_bytes_is_refused_with_the_way_out(text):
    with pytest.raises(ValueError, match=r"`plan`.*text like '8GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize("plan", ["graph", keep_last(M, 2)], ids=["graph", "last 2"])
def test_a_plan_that_keeps_graphs_is_refused_with_slices(plan):
    with pytest.raises(ValueError, match=r"keeps [24] graphs.*`micro_batch` \(2\).*plan='nodes'"):
        CheckpointedChain(lambda x, i: x, M, plan=plan, micro_batch=2)


@pytest.mark.parametrize("plan", ["nodes", "1GiB", keep_last(M, 1), binomial(M, slots=2)])
def test_other_plans_go_with_slices_and_keep_no_graph_at_the_turn(plan):
    chain = CheckpointedChain(lambda x, i: x, M, plan=plan, micro_batch=2)

    assert chain.plan.graphs == 1
    assert all(type(action).__name__ != "Record" for action in chain.plan.forward)


def test_a_chain_of_one_step_may_keep_its_graph_by_name_with_slices():
    assert CheckpointedChain(lambda x, i: x, 1, plan="graph", micro_batch=2).plan.graphs == 1


def test_bars_need_tqdm(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        CheckpointedChain(lambda x, i: x, M, progress=True)
    assert CheckpointedChain(lambda x, i: x, M).progress is False


class Module(torch.nn.Module):
    def forward(self, x, i, kind):
        return x * kind


@pytest.mark.parametrize(
    "step",
    [lambda x, i, kind: x, lambda x, i, *, kind=None: x, Module(), functools.partial(Module(), 1)],
)
def test_an_option_that_a_step_has_a_parameter_for_is_refused(step):
    with pytest.raises(TypeError, match=r"`kind=` is an option of `chain.measure`.*partial"):
        options.refuse_shadowed(step, "measure", "kind")


@pytest.mark.parametrize(
    "step",
    [
        lambda x, i: x,
        lambda x, i, *kind: x,
        lambda x, i, **kind: x,
        functools.partial(Module(), kind=2),
        torch.sin,
    ],
)
def test_an_option_that_the_step_has_no_parameter_for_goes_to_the_method(step):
    options.refuse_shadowed(step, "measure", "kind")


def test_a_positional_only_parameter_does_not_clash_with_an_option():
    def step(x, kind, /):
        return x * kind

    options.refuse_shadowed(step, "measure", "kind")


def test_costs_are_needed_for_a_budget():
    with pytest.raises(ValueError, match="`costs` is empty"):
        within(10, [])


def test_a_choice_of_blocks_becomes_a_tuple_of_modules_each_once():
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    assert options.as_blocks(torch.nn.ModuleList([first, second, first])) == (first, second)
    assert options.as_blocks(block for block in [second]) == (second,)
    assert options.as_blocks("auto") == "auto"
    assert options.as_blocks(None) is None


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (NET, r"`blocks` must be 'auto', None or a list.*got a Linear\. Pass `blocks=\[module\]`"),
        ("all", "`blocks` must be.*got 'all'.*`blocks='auto'`"),
        (3, "`blocks` must be.*got 3"),
        (True, "`blocks` must be.*got True"),
        ([NET, "transformer_blocks.0"], "`blocks` must hold modules; entry 1 is a str"),
        ([torch.nn.ModuleList([NET])], r"entry 0 is a ModuleList.*`blocks=\[\*entry\]`"),
    ],
)
def test_a_wrong_choice_of_blocks_is_refused_with_the_way_out(blocks, message):
    with pytest.raises(TypeError, match=message):
        options.as_blocks(blocks)
