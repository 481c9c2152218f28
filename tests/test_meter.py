"""The meter counts storages from their making to their death."""

import pytest
import torch

from chainograd import meter


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


def test_nested_meters_of_the_allocator_keep_their_own_peaks(monkeypatch):
    allocated, peak = 100, 100

    def allocate(by):
        nonlocal allocated, peak
        allocated += by
        peak = max(peak, allocated)

    def reset(device):
        nonlocal peak
        peak = allocated

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    with meter("cuda:0") as outer:
        allocate(70)
        allocate(-50)
        with meter("cuda:0") as inner:
            allocate(30)
            allocate(-10)

    assert (outer.peak_bytes, outer.live_bytes) == (70, 40)
    assert (inner.peak_bytes, inner.live_bytes) == (30, 20)
