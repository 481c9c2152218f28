"""A report says what a run took, step by step."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from chainograd import ChainError, CheckpointedChain, binomial
from chainograd.report.log import Log
from chainograd.state import State
from chainograd.tensors.parts import tensor_bytes
from tests.problems import Counted, Net

M = 6


def test_a_report_counts_the_runs_of_each_step():
    step = Counted(Net(4, torch.float32))
    chain = CheckpointedChain(step, M, plan=binomial(M, slots=2))
    chain(torch.randn(3, 4)).sum().backward()
    report = chain.report()

    assert report.evaluations == len(step.runs)
    assert [row.reruns for row in report.steps] == [step.runs.count(i) - 1 for i in range(M)]
    assert [row.node_bytes for row in report.steps] == [3 * 4 * 4] * M
    assert all(row.forward_seconds > 0 and row.backward_seconds > 0 for row in report.steps)
    assert all((row.rerun_seconds > 0) == (row.reruns > 0) for row in report.steps)


def test_cotangent_norms_are_those_of_the_plain_loop():
    net = Net(4, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    states = [x]
    for i in range(M):
        states.append(net(states[-1], i))
    grads = torch.autograd.grad(states[-1].square().sum(), states[:-1])
    chain = CheckpointedChain(net, M)

    chain(x).square().sum().backward()

    for row, g in zip(chain.report().steps, grads, strict=True):
        assert row.cotangent_norm == pytest.approx(g.norm().item(), rel=1e-12)


def test_the_norm_of_a_state_is_over_all_its_tensors():
    def step(state, i):
        return {"a": state["a"] * 3, "b": state["b"] * 4, "i": state["i"] + 1}

    x = {"a": torch.ones((), requires_grad=True), "b": torch.ones((), requires_grad=True), "i": 0}
    chain = CheckpointedChain(step, 1)
    y = chain(x)
    (y["a"] + y["b"]).backward()

    assert chain.report().steps[0].cotangent_norm == pytest.approx(5)


def test_norms_of_many_small_cotangents_are_all_there_after_each_backward_pass():
    w = torch.tensor(0.99, dtype=torch.float64, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, 150)
    y = chain(torch.ones(1, dtype=torch.float64)).sum()

    for factor in (1, 3):
        (factor * y).backward(retain_graph=True)
        norms = [row.cotangent_norm for row in chain.report().steps[1:]]
        assert norms == pytest.approx([factor * 0.99 ** (150 - i) for i in range(1, 150)], rel=1e-9)


def test_norms_of_cotangents_of_every_kind_are_those_of_each():
    kinds = [
        torch.ones(()), torch.randn(3), torch.randn(3, dtype=torch.float64),
        torch.randn(3, dtype=torch.complex64), torch.randn(2, 3).t(), torch.randn(6),
        torch.randn(0, 2), torch.randn(1, 2, 3, 2).to(memory_format=torch.channels_last),
    ]  # fmt: skip
    leaves = [leaf.requires_grad_() for leaf in kinds]
    chain = CheckpointedChain(lambda x, i: [2 * leaf for leaf in x], 3)
    total = sum((leaf * leaf.conj()).real.sum().float() for leaf in chain(leaves))
    total.backward()

    # y = 8 x, and the cotangent of the state that enters step i is 2 y 2^(3 - i)
    norm = sum(leaf.detach().to(torch.complex128).norm() ** 2 for leaf in kinds).real ** 0.5
    for i, row in enumerate(chain.report().steps):
        assert row.cotangent_norm == pytest.approx(16 * 2 ** (3 - i) * norm.item(), rel=1e-5)


KINDS = {
    "COO": lambda: torch.tensor([[0.0, 3], [4, 0]]).to_sparse(),
    "CSR": lambda: torch.tensor([[0.0, 3], [4, 0]]).to_sparse_csr(),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.tensor([[3.0]]), torch.tensor([[4.0], [0.0]])], layout=torch.jagged
    ),
    "nested": lambda: torch.nested.nested_tensor([torch.tensor([3.0]), torch.tensor([4.0, 0])]),
    "8 bits": lambda: torch.tensor([3.0, 4]).to(torch.float8_e4m3fn),
    "8 bits, many": lambda: torch.ones(4000).to(torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 3, torch.qint8),
    "a wrapper": lambda: TwoTensor(torch.tensor([3.0, 4]), torch.tensor([3.0, 4])),
}
OF_NO_NORM = {"nested", "8 bits", "8 bits, many", "quantized"}  # torch has none


@pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta",
    "ignore:The PyTorch API of nested tensors",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel",
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_tensors_of_any_kind_has_their_bytes_and_a_norm_or_none(kind):
    tensor = KINDS[kind]()
    log = Log(torch.device("cpu"))
    log.saw(0, State.of([tensor, torch.ones(2), 3]))
    log.sent(0, {0: tensor, 1: torch.zeros(2)})
    log.settle()
    (row,) = log.report(1, None).steps

    assert row.node_bytes == tensor_bytes(tensor) + 8
    if kind in OF_NO_NORM:
        assert row.cotangent_norm is None
    else:
        assert row.cotangent_norm == pytest.approx(5)


def test_entries_of_a_sparse_cotangent_at_one_place_are_added_before_their_norm_is_taken():
    log = Log(torch.device("cpu"))
    twice = torch.sparse_coo_tensor([[1, 1]], [3.0, 4.0], (3,), check_invariants=True)
    log.sent(0, {0: twice})
    assert log.report(1, None).steps[0].cotangent_norm == pytest.approx(7)


@pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta", "ignore:The PyTorch API of nested tensors"
)
@pytest.mark.parametrize("kind", ["COO", "jagged", "8 bits"])
@pytest.mark.parametrize("plan", ["graph", "nodes"])
def test_a_state_with_a_tensor_of_any_kind_is_reported_and_gives_the_gradient(kind, plan):
    other = KINDS[kind]()
    chain = CheckpointedChain(lambda x, i: (w * x[0], x[1]), 3, plan=plan, verify="off")
    w = torch.tensor(2.0, requires_grad=True)
    y, _ = chain((torch.ones(2), other))
    y.sum().backward()

    assert w.grad.item() == 2 * 3 * 2**2
    assert [row.node_bytes for row in chain.report().steps] == [8 + tensor_bytes(other)] * 3


def test_a_large_cotangent_is_freed_at_once():
    alive = []

    def transform(i, g):
        alive.append(weakref.ref(g))
        assert sum(ref() is not None for ref in alive) <= 2
        return g

    w = torch.full((512,), 0.9, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, 20, grad_transform=transform)
    chain(torch.ones(512, requires_grad=True)).sum().backward()

    assert len(alive) == 20


def test_a_report_before_the_backward_pass_has_the_forward_pass():
    chain = CheckpointedChain(Net(4, torch.float32), M)
    chain(torch.randn(3, 4))
    rows = chain.report().steps

    assert all(row.forward_seconds > 0 for row in rows)
    assert all(row.reruns == 0 and row.cotangent_norm is None for row in rows)


def test_a_report_without_a_run_says_what_to_do():
    chain = CheckpointedChain(Net(4, torch.float32), M)
    with torch.no_grad():
        chain(torch.randn(3, 4))

    with pytest.raises(ChainError, match="gradients enabled"):
        chain.report()


def test_a_report_prints_as_a_table_with_measured_graphs():
    chain = CheckpointedChain(Net(4, torch.float32), M)
    x = torch.randn(3, 4)
    costs = chain.measure(x)
    chain(x).sum().backward()
    table = str(chain.report()).splitlines()

    assert len(table) == 1 + M
    assert len({len(line) for line in table}) == 1
    assert table[0].split() == [
        "step", "forward", "reruns", "rerun", "backward", "node", "graph", "|cotangent|",
    ]  # fmt: skip
    assert f"{costs[2].graph_bytes / 2**10:.1f} KiB" in table[3]
    assert table[1].endswith("-")  # x_T needs no gradient


def test_reports_of_batches_of_gradients_and_of_fake_tensors_leave_the_norms_out():
    chain = CheckpointedChain(Net(2, torch.float32), M)
    x = torch.ones(1, 2, requires_grad=True)
    y = chain(x)
    torch.autograd.grad(y, x, torch.ones(5, 1, 2), is_grads_batched=True)
    assert all(row.cotangent_norm is None for row in chain.report().steps)

    with FakeTensorMode():
        chain = CheckpointedChain(Net(2, torch.float32), M)
        chain(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert all(row.cotangent_norm is None for row in chain.report().steps)


def test_a_bar_counts_the_evaluations_of_each_pass(capsys):
    net = Net(4, torch.float32)
    CheckpointedChain(net, M, progress=True)(torch.randn(3, 4)).sum().backward()
    shown = capsys.readouterr().err

    assert f"forward: 100%|██████████| {M}/{M}" in shown
    assert f"backward: 100%|██████████| {M - 1}/{M - 1}" in shown


def test_a_bar_without_tqdm_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ImportError, match="pip install tqdm"):
        CheckpointedChain(lambda x, i: x, M, progress=True)
