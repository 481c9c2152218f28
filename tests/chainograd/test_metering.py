"""The meter counts every storage from its allocation until it is freed."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from chainograd import meter
from tests.chainograd.tensors.accelerators import Accelerator


def test_the_peak_is_what_was_alive_at_once_and_views_cost_nothing():
    before = torch.ones(1000)
    with meter() as reading:
        a = before[:500] * 2  # 2000 bytes
        b = a.view(50, 10).T
        c = a + 1  # 2000 more
        del a, b, c
        d = before + 1  # 4000
        before.add_(1)

    assert reading.peak_bytes == 4000
    assert reading.live_bytes == 4000
    del d
    assert reading.live_bytes == 0


def test_what_the_graph_keeps_counts_until_backward_frees_it():
    x = torch.ones(250, requires_grad=True)

    def peak(k):
        with meter() as reading:
            y = x
            for _ in range(k):
                y = torch.tanh(y)
            held = reading.live_bytes
            y.sum().backward()
            x.grad = None
            del y
            assert reading.live_bytes == 0
        return held, reading.peak_bytes

    assert peak(7)[0] == 7000
    assert peak(7) == peak(7)
    assert peak(8)[1] - peak(7)[1] == 1000


def test_meters_nest():
    with meter() as outer:
        a = torch.ones(10)
        with meter() as inner:
            b = a + 1
        del a, b

    assert (outer.peak_bytes, inner.peak_bytes) == (80, 40)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_literal_and_sparse_tensors_count():
    with meter() as reading:
        a = torch.tensor([1.0, 2.0, 3.0])
        assert reading.live_bytes == 12
        b = torch.eye(4).to_sparse()  # 4 values of 4 bytes, 2 x 4 indices of 8 bytes
        assert reading.live_bytes == 12 + 16 + 64
        c = torch.eye(4).to_sparse_csr()  # 5 row pointers, 4 values, 4 columns
    del a, b
    columns = c.col_indices().untyped_storage().nbytes()  # half of a 2 x 4, or older torch's copy
    assert columns in (64, 32)
    assert reading.live_bytes == 40 + 16 + columns
    del c
    assert reading.live_bytes == 0


def test_a_resized_storage_counts_at_its_new_size():
    with meter() as reading:
        a = torch.ones(100)
        a.resize_(300)
        assert reading.live_bytes == 1200
        a.untyped_storage().resize_(0)
        a.set_()
    assert reading.peak_bytes == 1200


@pytest.mark.parametrize("kind", ["cuda", "xpu", "privateuseone"])
def test_nested_meters_of_an_allocator_keep_their_own_peaks(kind, monkeypatch):
    device = Accelerator.standing_for(kind, monkeypatch)
    with meter(f"{kind}:0") as outer:
        device.allocate(70)
        device.allocate(-50)
        with meter(kind) as inner:  # the current one, which is 0
            device.allocate(30)
            device.allocate(-10)

    assert (outer.peak_bytes, outer.live_bytes) == (70, 40)
    assert (inner.peak_bytes, inner.live_bytes) == (30, 20)
    assert device.log.count(("synchronize", 0)) == 4


def test_fake_tensors_of_an_accelerator_are_followed_without_its_allocator(
    monkeypatch,
):
    device = Accelerator.standing_for("cuda", monkeypatch)
    with FakeTensorMode(), meter("cuda:0") as reading:
        x = torch.ones(10)
        device.allocate(70)
    assert reading.peak_bytes == x.nbytes


@pytest.mark.parametrize("kind", ["mps", "meta", "vulkan"])
def test_where_no_allocator_tells_its_peak_storages_are_followed(kind, monkeypatch):
    Accelerator.standing_for("mps", monkeypatch, lacks=("max_memory_allocated",))
    with meter(kind) as reading:
        torch.ones(10)
    assert reading.peak_bytes == 40


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_parts_of_wrapper_tensors_count_until_they_are_freed():
    with meter() as reading:
        a = TwoTensor(torch.ones(10), torch.ones(10)) + 1
        assert reading.live_bytes == 80
        values = torch.ones(6, 3) + 1
        b = torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 6])) * 2
        assert reading.live_bytes >= 80 + 2 * 72
    del a, b, values
    assert reading.live_bytes < 80
