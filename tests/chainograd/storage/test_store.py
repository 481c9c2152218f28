"""Where kept states live: every store has the plain gradient, and its bytes are foretold."""

import os

import pytest
import torch

from chainograd import ChainError, CheckpointedChain, ReplayError, Store, StoreError, meter
from chainograd.state import State
from chainograd.tensors.parts import tensor_bytes
from tests.chainograd.storage.states import ODD, PLANS, M, odd
from tests.problems import Net, Noisy, Wide, plain, states_of


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("place", ["device", "host", "folder"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_store_gives_the_gradients_of_the_plain_loop_to_the_bit(plan, place, dtype, tmp_path):
    net = Noisy(8, dtype)
    x = torch.randn(3, 8, dtype=dtype, requires_grad=True)

    def gradients(run):
        torch.manual_seed(5)
        states = run(x)
        loss = states[3].square().sum() + states[M].sum()
        return [states[M], *torch.autograd.grad(loss, (x, *net.parameters()))]

    expected = gradients(lambda x: states_of(net, M, x))
    store = tmp_path if place == "folder" else place
    got = gradients(CheckpointedChain(net, M, plan=plan, store=store).trajectory)

    assert all(map(torch.equal, got, expected))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("store", ["folder", "rounded"])
def test_channels_last_at_batch_1_has_the_plain_gradient_with_every_store(store, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.GroupNorm(2, 8))
    seen = []

    def step(x, i):
        seen.append((i, x.stride()))
        return x + 0.1 * net(x)

    x = torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last)
    place = Store(tmp_path) if store == "folder" else Store(dtype=torch.bfloat16)
    loss = CheckpointedChain(step, M, store=place)(x).square().sum()
    first = dict(seen)
    seen.clear()
    loss.backward()

    assert len(seen) == M - 1
    assert all(first[i] == stride for i, stride in seen)


@odd
@pytest.mark.parametrize("kind", ODD)
def test_a_rounding_store_tells_the_bytes_of_a_state_of_any_kind(kind):
    state = State.of([torch.ones(4), ODD[kind]()])
    kept = Store(dtype=torch.bfloat16).stored_bytes(state)
    assert 8 < kept <= 8 + tensor_bytes(state.leaves[1])


def test_states_in_a_folder_take_the_memory_of_the_few_in_use(tmp_path):
    w = torch.randn(64, 64, requires_grad=True)
    node = 512 * 64 * 4

    def peak(M, store):
        x = torch.randn(512, 64)
        with meter() as reading:
            y = CheckpointedChain(lambda x, i: torch.tanh(x @ w / 8), M, store=store)(x)
            torch.autograd.grad(y.sum(), w)
        return reading.peak_bytes

    assert peak(40, tmp_path) - peak(10, tmp_path) < node / 100  # digests: 8 bytes a state
    assert peak(40, "device") - peak(10, "device") == 30 * node


def predicted_and_measured(chain, x):
    """Return a chain's peak as predicted from its steps, and as measured."""
    predicted = chain.plan.with_costs(chain.measure(x)).peak_bytes
    for _ in range(2):  # the first run allocates what stays
        with meter() as reading:
            y = chain(x.clone())
            torch.autograd.grad(y, list(chain.step.parameters()), torch.ones_like(y))
    return predicted, reading.peak_bytes


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_predicted_peak_counts_every_state_to_the_byte(plan):
    chain = CheckpointedChain(Net(32, torch.float32), M, plan=plan)
    predicted, measured = predicted_and_measured(chain, torch.randn(4096, 32))
    parameters = 4 * (32 * 32 + 32)  # their gradients, and sums on the way

    assert abs(predicted - measured) <= 3 * parameters


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("place", ["device", "folder"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_predicted_peak_is_the_measured_one_with_every_store(plan, place, dtype, tmp_path):
    store = Store(tmp_path if place == "folder" else place, dtype)
    chain = CheckpointedChain(Wide(), M, plan=plan, store=store)
    predicted, measured = predicted_and_measured(chain, torch.randn(1024, 32))

    assert abs(predicted - measured) <= 0.03 * measured


@pytest.mark.parametrize("place", ["device", "folder"])
def test_rounded_states_take_half_the_memory_and_give_nearly_the_same_gradient(place, tmp_path):
    net = Net(32, torch.float32)
    x = torch.randn(64, 32)
    expected = torch.autograd.grad(plain(net, M, x).square().sum(), net.w)[0]
    chain = CheckpointedChain(
        net, M, store=Store(tmp_path if place == "folder" else place, torch.bfloat16)
    )

    y = chain(x)
    got = torch.autograd.grad(y.square().sum(), net.w)[0]

    assert torch.equal(y, plain(net, M, x))  # what is sampled is not rounded
    assert 0 < (got - expected).norm() < 0.02 * expected.norm()
    assert chain.measure(x)[1].kept_bytes == (0 if place == "folder" else 64 * 32 * 2)


def test_other_noise_is_noticed_although_states_are_rounded():
    w = torch.ones(50, requires_grad=True)
    hidden = torch.Generator()
    chain = CheckpointedChain(
        lambda x, i: w * x + torch.randn(50, generator=hidden), M, store=Store(dtype=torch.bfloat16)
    )

    with pytest.raises(ReplayError, match=r"Step \d.*rounding explains"):
        chain(torch.ones(50)).sum().backward()


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("hots", r"'device', 'host' or a folder.*'hots'.*'./nodes'"),
        (3, "'device', 'host' or a folder"),
    ],
)
def test_a_misspelt_store_is_not_taken_for_a_folder(store, message):
    with pytest.raises(ValueError, match=message):
        CheckpointedChain(lambda x, i: x, M, store=store)


@pytest.mark.parametrize("dtype", [torch.int8, "bf16"])
def test_only_floating_dtypes_can_round(dtype):
    with pytest.raises(ValueError, match="floating dtype"):
        Store(dtype=dtype)


def test_a_store_on_the_host_leaves_states_of_the_host_where_they_are():
    x = State.of(torch.ones(3))
    assert Store("host").storage(x, lambda: 1).put(0, x).load().leaves[0] is x.leaves[0]
    assert not Store("host").elsewhere(torch.device("cpu"))
    for kind in ("cuda", "xpu", "mps", "privateuseone"):
        assert Store("host").elsewhere(torch.device(kind))


def test_a_failed_store_is_an_error_of_the_chain():
    assert issubclass(StoreError, ChainError)
    assert os.fspath(Store("./x").place) == "./x"
