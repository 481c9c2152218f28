"""Nodes on the device, on the host, in a folder, in fewer bits."""

import copy
import gc
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from chainograd import (
    ChainError,
    CheckpointedChain,
    ReplayError,
    Store,
    StoreError,
    binomial,
    keep_last,
    meter,
)
from chainograd.state import State
from chainograd.storage.host import HostStorage
from chainograd.storage.packing import Layout
from chainograd.storage.transfers import Transfers
from chainograd.tensors.parts import tensor_bytes
from tests.chainograd.tensors.accelerators import Accelerator
from tests.problems import Net, Noisy, Wide, plain, states_of

M = 7
PLANS = {
    "nodes": keep_last(M, 1),
    "graph": keep_last(M, M),
    "last 3": keep_last(M, 3),
    "1 slot": binomial(M, slots=1),
    "3 slots": binomial(M, slots=3),
}


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def wait_until(true, at_once=False):
    """Wait for what a thread does by itself, if it may; the test fails if it never does."""
    deadline = time.monotonic() + (0 if at_once else 20)
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


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


STRANGE = {
    "transposed": lambda: torch.randn(4, 3).t(),
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "expanded with gaps": lambda: torch.randn(3, 8)[:, ::2, None].expand(3, 4, 5),
    "overlapping": lambda: torch.randn(9).unfold(0, 4, 1),
    "strided": lambda: torch.randn(3, 8)[:, ::2],
    "a part with gaps": lambda: torch.randn(4, 3, 8)[1:, 1, 2:],
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "channels last, one sample": lambda: torch.randn(1, 8, 4, 4).to(
        memory_format=torch.channels_last
    ),
    "channels last, one channel": lambda: torch.randn(2, 1, 4, 4).to(
        memory_format=torch.channels_last
    ),
    "channels last, 3d, one sample": lambda: torch.randn(1, 8, 2, 4, 4).to(
        memory_format=torch.channels_last_3d
    ),
    "channels last, one row": lambda: torch.randn(1, 8, 1, 4).to(memory_format=torch.channels_last),
    "negated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    "conjugated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj(),
    "empty": lambda: torch.randn(0, 4),
    "a number": lambda: torch.tensor(3.0),
    "integers": lambda: torch.arange(5),
    "flags": lambda: torch.tensor([True, False]),
    "8 bits": lambda: torch.randn(5).to(torch.float8_e4m3fn),
}


def storage_of(place, state, folder):
    if place == "folder":
        return Store(folder).storage(state, lambda: 1)
    if place == "host":
        return HostStorage(Transfers(torch.device("cpu"), Accelerator(), torch.empty))
    return Store("device", torch.bfloat16).storage(state, lambda: 1)


@pytest.mark.parametrize("place", ["folder", "host", "rounded"])
@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_a_state_comes_back_with_values_dtype_and_strides(make, place, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, side: None)
    tensor = make()
    state = State.of({"x": tensor, "step": 3, "none": None})
    storage = storage_of(place, state, tmp_path)
    node = storage.put(0, state)

    back = node.load().tree()

    expected = tensor
    if place == "rounded" and tensor.is_floating_point() and tensor.itemsize > 2:
        expected = tensor.bfloat16().to(tensor.dtype)
    assert torch.equal(back["x"].to(torch.complex64), expected.to(torch.complex64))
    assert back["x"].dtype == tensor.dtype
    assert back["x"].stride() == tensor.stride()
    assert (back["x"].is_conj(), back["x"].is_neg()) == (tensor.is_conj(), tensor.is_neg())
    assert (back["step"], back["none"]) == (3, None)
    again = storage.put(1, State.of(back)).load().tree()  # what came back can be kept
    assert again["x"].stride() == tensor.stride()
    storage.close()


def test_entries_with_gaps_between_them_are_kept_without_the_gaps():
    assert Layout.of(torch.randn(3, 8)[:, ::4]).count == 6
    assert Layout.of(torch.randn(3, 1).expand(3, 100)).count == 3
    assert Layout.of(torch.randn(9).unfold(0, 4, 1)).count == 9


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


class Named(torch.Tensor):
    """A tensor of another class, and nothing more."""


ODD = {
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
    "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "NestedTensor": lambda: torch.nested.nested_tensor(
        [torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged
    ),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
    "quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 3, torch.qint8),
    "class TwoTensor": lambda: TwoTensor(torch.ones(3), torch.ones(3)),
    "class Named": lambda: torch.ones(3).as_subclass(Named),
}
odd = pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta",
    "ignore:The PyTorch API of nested tensors",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel",
)


@odd
@pytest.mark.parametrize("place", ["folder", "host"])
@pytest.mark.parametrize("kind", ODD)
def test_a_state_that_bytes_do_not_bring_back_is_refused_by_the_name_of_its_kind(
    kind, place, tmp_path, monkeypatch
):
    state = State.of([torch.ones(2), ODD[kind]()])
    message = rf"(?s)`store` .*holds a .*{kind}.*store='device'"
    plain_state = State.of(torch.ones(2))

    store = Store(tmp_path if place == "folder" else "host")
    monkeypatch.setattr("chainograd.storage.store.is_accelerator", lambda device: True)
    with pytest.raises(StoreError, match=message):  # as the state that enters the chain
        store.storage(state, lambda: 1)
    storage = storage_of(place, plain_state, tmp_path)
    with pytest.raises(StoreError, match=message):  # and as one on the way
        storage.put(1, state)
    storage.close()


@odd
@pytest.mark.parametrize("kind", ODD)
def test_a_rounding_store_says_what_a_state_of_any_kind_takes(kind):
    state = State.of([torch.ones(4), ODD[kind]()])
    kept = Store(dtype=torch.bfloat16).stored_bytes(state)
    assert 8 < kept <= 8 + tensor_bytes(state.leaves[1])


def test_nodes_in_a_folder_take_no_memory_but_that_of_the_few_in_use(tmp_path):
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


@pytest.mark.parametrize("end", ["backward", "forgotten", "failed forward", "failed backward"])
def test_files_are_gone_however_a_run_ends(end, tmp_path):
    net = Net(4, torch.float32)
    failing = {"now": end == "failed forward"}
    seen = []

    def step(x, i):
        seen.append(len(files(tmp_path)))
        if failing["now"] and i == 3:
            raise ValueError("stop")
        return net(x, i)

    chain = CheckpointedChain(step, M, store=tmp_path)
    gc.disable()
    try:
        if end == "failed forward":
            with pytest.raises(ValueError, match="stop"):
                chain(torch.ones(2, 4))
        else:
            loss = chain(torch.ones(2, 4)).sum()
            assert len(files(tmp_path)) == M
        if end == "backward":
            loss.backward()
        elif end == "failed backward":
            failing["now"] = True
            with pytest.raises(ValueError, match="stop") as error:
                loss.backward()
            assert error.value.__traceback__ is not None  # which holds frames; files it does not
        elif end == "forgotten":
            del loss
        wait_until(lambda: not list(tmp_path.iterdir()), at_once=end != "forgotten")
        assert max(seen) > 0
    finally:
        gc.enable()


def test_files_are_gone_when_the_interpreter_ends_with_a_gradient_owed(tmp_path):
    code = f"""
import torch
from chainograd import CheckpointedChain
w = torch.ones(3, requires_grad=True)
loss = CheckpointedChain(lambda x, i: w * x, 5, store={str(tmp_path)!r})(torch.ones(3)).sum()
"""
    subprocess.run([sys.executable, "-c", code], check=True)

    assert not list(tmp_path.iterdir())


def test_a_folder_without_room_is_refused_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    runs = []
    w = torch.ones(100, requires_grad=True)

    with pytest.raises(StoreError, match=r"1,000 bytes free, but 7 states need 2,800.*another"):
        CheckpointedChain(lambda x, i: runs.append(i) or w * x, M, store=tmp_path)(torch.ones(100))
    assert not runs
    wait_until(lambda: not list(tmp_path.iterdir()))


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    w = torch.ones(3, requires_grad=True)

    with pytest.raises(StoreError, match=r"cannot be written to.*Name another folder"):
        CheckpointedChain(lambda x, i: w * x, M, store=tmp_path / "file" / "nodes")(torch.ones(3))


def test_a_disk_that_fills_up_on_the_way_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    w = torch.ones(3, requires_grad=True)
    chain = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("chainograd.storage.disk._write", full)
        with pytest.raises(StoreError, match=r"No space left on device.*store='host'"):
            chain(torch.ones(3))
    assert not list(tmp_path.iterdir())

    chain(torch.ones(3)).sum().backward()  # and the chain works again
    assert torch.equal(w.grad, torch.full((3,), 7.0))


@pytest.mark.parametrize("harm", ["removed", "cut short"])
def test_a_file_that_is_lost_is_an_error_with_its_name(harm, tmp_path):
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(torch.ones(3)).sum()
    (victim,) = (path for path in files(tmp_path) if path.name.endswith("state-2"))
    if harm == "removed":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:5])

    with pytest.raises(StoreError, match="state-2"):
        loss.backward()


def test_a_changed_file_is_noticed_by_the_replay(tmp_path):
    w = torch.ones(3, requires_grad=True)
    loss = CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(torch.ones(3)).sum()
    (victim,) = (path for path in files(tmp_path) if path.name.endswith("state-2"))
    victim.write_bytes(bytes(12))

    with pytest.raises(ReplayError, match="Step 2"):
        loss.backward()


@pytest.mark.parametrize("place", ["device", "folder"])
def test_rounded_nodes_take_half_and_give_about_the_gradient(place, tmp_path):
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


def test_other_noise_is_noticed_although_nodes_are_rounded():
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


def test_fake_tensors_are_not_written_to_files(tmp_path):
    with FakeTensorMode():
        w, x = torch.ones(3, requires_grad=True), torch.ones(3)
        with pytest.raises(StoreError, match="fake"):
            CheckpointedChain(lambda x, i: w * x, M, store=tmp_path)(x)


def test_copies_are_ordered_by_one_side_stream_and_waited_for(monkeypatch):
    cuda, allocated, copy_ = Accelerator(), [], torch.Tensor.copy_

    def copied(into, source, non_blocking):
        assert cuda.current == "side"
        cuda.log.append(("copy", non_blocking))
        return copy_(into, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, side: cuda.log.append(("used on", side))
    )

    def allocate(count, *, dtype):
        allocated.append(count)
        return torch.empty(count, dtype=dtype)

    storage = HostStorage(Transfers(torch.device("cpu"), cuda, allocate))
    x = torch.randn(4, 3)
    node = storage.put(0, State.of(x))
    out = ["side waits for", "copy", "used on"]
    assert [entry[0] for entry in cuda.log] == out
    assert ("copy", True) in cuda.log
    cuda.log.clear()

    node.prefetch()
    node.prefetch()  # asked for twice, brought once
    assert not any(entry[0] == "main waits" for entry in cuda.log)
    back = node.load().tree()

    assert cuda.log[-1] == ("main waits", 2)
    assert [entry[0] for entry in cuda.log[:-1]] == out
    assert torch.equal(back, x)
    del node
    storage.put(1, State.of(x))
    assert allocated == [12]  # the pinned buffer was taken again


def test_a_store_on_the_host_leaves_states_of_the_host_where_they_are():
    x = State.of(torch.ones(3))
    assert Store("host").storage(x, lambda: 1).put(0, x).load().leaves[0] is x.leaves[0]
    assert not Store("host").elsewhere(torch.device("cpu"))
    for kind in ("cuda", "xpu", "mps", "privateuseone"):
        assert Store("host").elsewhere(torch.device(kind))


@pytest.fixture
def side_by_side(monkeypatch):
    """Copies from and to an accelerator that is none, and what was allocated for them."""
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, side: None)
    allocated = []

    def allocate(count, *, dtype):
        buffer = torch.empty(count, dtype=dtype)
        allocated.append(buffer)
        return buffer

    return Transfers(torch.device("cpu"), Accelerator(), allocate), allocated


def idle(transfers):
    """Return the bytes of buffers that wait to be taken again."""
    return sum(buffer.nbytes for some in transfers.spare.values() for buffer in some)


def test_idle_pinned_memory_is_that_of_the_last_size_only(side_by_side):
    transfers, allocated = side_by_side
    for size in (100, 150, 80, 200, 120):
        storage = HostStorage(transfers)
        nodes = [storage.put(i, State.of(torch.full((size,), float(i)))) for i in range(50)]
        assert idle(transfers) == 0
        assert all(torch.equal(n.load().tree(), torch.full((size,), float(i)))
                   for i, n in enumerate(nodes))  # fmt: skip
        del nodes
        assert idle(transfers) == 50 * size * 4
    assert len(allocated) == 5 * 50


def test_every_size_of_one_state_is_taken_again_by_the_next_call(side_by_side):
    transfers, allocated = side_by_side
    state = State.of([torch.ones(100), torch.ones(30), torch.ones(30, dtype=torch.float64)])
    for _ in range(3):
        storage = HostStorage(transfers)
        nodes = [storage.put(i, state) for i in range(4)]
        del nodes
    assert len(allocated) == 12


def test_a_buffer_given_back_late_does_not_stay_if_its_size_is_out_of_use(side_by_side):
    transfers, _ = side_by_side
    late = HostStorage(transfers).put(0, State.of(torch.ones(100)))
    HostStorage(transfers).put(0, State.of(torch.ones(10)))
    del late
    assert idle(transfers) == 40


def test_what_was_dropped_is_returned_to_the_system_when_the_next_call_begins(
    side_by_side, monkeypatch
):
    transfers, _ = side_by_side
    returned = []
    monkeypatch.setattr("chainograd.storage.transfers.unpin_unused", lambda: returned.append(1))
    for size, times in ((10, 0), (10, 0), (20, 0), (20, 1), (20, 1)):
        HostStorage(transfers).put(0, State.of(torch.ones(size)))
        assert len(returned) == times


def test_a_device_without_streams_copies_while_the_host_waits():
    transfers = Transfers(torch.device("cpu"), SimpleNamespace())
    node = HostStorage(transfers).put(0, State.of(torch.arange(3.0)))
    node.prefetch()
    assert torch.equal(node.load().tree(), torch.arange(3.0))


def test_a_copy_of_a_chain_copies_beside_its_own_steps(side_by_side, monkeypatch):
    transfers, _ = side_by_side
    HostStorage(transfers).put(0, State.of(torch.ones(10)))
    assert idle(transfers) == 40
    monkeypatch.setattr("chainograd.storage.transfers.module_of", lambda device: Accelerator())

    other = copy.deepcopy(transfers)

    assert idle(other) == 0
    assert other.side is not transfers.side


def test_a_failed_store_is_an_error_of_the_chain():
    assert issubclass(StoreError, ChainError)
    assert os.fspath(Store("./x").place) == "./x"
