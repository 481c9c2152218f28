"""The meter counts storages from their making to their death."""

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
