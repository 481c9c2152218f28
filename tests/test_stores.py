"""Nodes on the device, on the host, in a folder, in fewer bits."""

import gc
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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
from chainograd.packing import dense
from chainograd.states import State
from chainograd.transfers import HostShelf, Transfers
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
    "strided": lambda: torch.randn(3, 8)[:, ::2],
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "conjugated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj(),
    "empty": lambda: torch.randn(0, 4),
    "a number": lambda: torch.tensor(3.0),
    "integers": lambda: torch.arange(5),
    "flags": lambda: torch.tensor([True, False]),
    "8 bits": lambda: torch.randn(5).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_a_state_comes_back_from_its_file_with_values_dtype_and_order_in_memory(make, tmp_path):
    tensor = make()
    state = State.of({"x": tensor, "step": 3, "none": None})
    node = Store(tmp_path).shelf(state, lambda: 1).put(0, state)

    back = node.load().tree()

    assert torch.equal(back["x"].cpu().to(torch.complex64), tensor.to(torch.complex64))
    assert back["x"].dtype == tensor.dtype
    assert back["x"].stride() == dense(tensor).stride()
    assert (back["step"], back["none"]) == (3, None)


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
        patch.setattr("chainograd.folders._write", full)
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


class Recorder:
    """Stands for `torch.cuda`: logs what streams are asked to do, and sees who asks."""

    def __init__(self):
        self.log, self.current = [], "main"

    def Stream(self, device):  # noqa: N802
        return Side(self)

    def current_stream(self, device):
        return Waiting(self, self.current)

    @contextmanager
    def stream(self, side):
        before, self.current = self.current, "side"
        try:
            yield
        finally:
            self.current = before


class Waiting:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_event(self, event):
        assert self.name == "main", "the steps' stream waits, not the side stream"
        self.cuda.log.append(("main waits", event))


class Side:
    def __init__(self, cuda):
        self.cuda, self.events = cuda, 0

    def wait_stream(self, stream):
        assert stream.name == "main", "the current stream was asked for too late"
        self.cuda.log.append(("side waits for", stream.name))

    def record_event(self):
        assert self.cuda.current == "side"
        self.events += 1
        return self.events


def test_copies_are_ordered_by_one_side_stream_and_waited_for(monkeypatch):
    cuda, allocated, copy = Recorder(), [], torch.Tensor.copy_

    def copied(into, source, non_blocking):
        assert cuda.current == "side"
        cuda.log.append(("copy", non_blocking))
        return copy(into, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, side: cuda.log.append(("used on", side))
    )

    def allocate(count, *, dtype):
        allocated.append(count)
        return torch.empty(count, dtype=dtype)

    shelf = HostShelf(Transfers(torch.device("cpu"), cuda, allocate))
    x = torch.randn(4, 3)
    node = shelf.put(0, State.of(x))
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
    shelf.put(1, State.of(x))
    assert allocated == [12]  # the pinned buffer was taken again


def test_a_store_on_the_host_leaves_states_of_the_host_where_they_are():
    x = State.of(torch.ones(3))
    assert Store("host").shelf(x, lambda: 1).put(0, x).load().leaves[0] is x.leaves[0]
    assert not Store("host").elsewhere(torch.device("cpu"))
    assert Store("host").elsewhere(torch.device("cuda"))


def test_a_failed_store_is_an_error_of_the_chain():
    assert issubclass(StoreError, ChainError)
    assert os.fspath(Store("./x").place) == "./x"
