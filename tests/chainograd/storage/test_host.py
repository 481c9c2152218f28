"""States of an accelerator on the host: copied beside the steps, in pinned memory used again."""

import copy
from types import SimpleNamespace

import pytest
import torch

from chainograd.state import State
from chainograd.storage.host import HostStorage
from chainograd.storage.transfers import Transfers
from tests.chainograd.tensors.accelerators import Accelerator


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


def test_dropped_buffers_return_to_the_system_when_the_next_call_begins(side_by_side, monkeypatch):
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
