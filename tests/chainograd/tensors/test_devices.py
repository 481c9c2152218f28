"""What the engine asks of a device: the same of CUDA, XPU, NPU, MPS and unknown devices."""

import time
from types import SimpleNamespace

import pytest
import torch

from chainograd import CheckpointedChain
from chainograd.engine.accumulate import GradAccumulator
from chainograd.replay.rng import RNGSources
from chainograd.report.log import Log
from chainograd.tensors import devices
from tests.chainograd.tensors.accelerators import Accelerator, Event

KINDS = ["cuda", "xpu", "privateuseone"]
CPU = torch.device("cpu")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_a_device_that_is_not_there_has_no_module(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cpu", "meta", "cuda", "privateuseone", "vulkan"):
        assert devices.module_of(torch.device(name)) is None
        devices.synchronize(torch.device(name))
    assert devices.is_accelerator(torch.device("cuda"))  # of a fake tensor
    assert not devices.is_accelerator(CPU)


def test_the_streams_of_every_device_in_use_are_read_and_put_back_one_by_one(kind, monkeypatch):
    module = Accelerator.standing_for(kind, monkeypatch, count=3)
    named = torch.Generator()
    used = [CPU, torch.device(kind, 2), torch.device(kind), torch.device(kind, 0)]
    streams = RNGSources(used, [named])
    assert [stream.device.index for stream in streams.on_devices] == [0, 2]
    assert streams.defaults == [
        torch.default_generator, module.default_generators[0], module.default_generators[2],
    ]  # fmt: skip

    before = streams.state()
    for generator in (*streams.defaults, named):
        expected = torch.rand(3, generator=generator)
        assert streams.state(before) is not before
        streams.set(before)
        assert streams.state(before) is before
        assert torch.equal(torch.rand(3, generator=generator), expected)
        streams.set(before)
    torch.rand(3, generator=module.default_generators[1])  # which is not in use
    assert streams.state(before) is before


def test_mps_has_one_stream_and_its_functions_take_no_device(monkeypatch):
    generator = torch.Generator()
    module = SimpleNamespace(
        is_available=lambda: True,
        get_rng_state=generator.get_state,
        set_rng_state=generator.set_state,
        synchronize=lambda: None,
        _get_default_mps_generator=lambda: generator,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    streams = RNGSources([torch.device("mps", 0), torch.device("mps")])
    assert streams.defaults == [torch.default_generator, generator]

    before = streams.state()
    torch.rand(1, generator=generator)
    assert streams.state() != before
    streams.set(before)
    assert streams.state() == before
    devices.synchronize(torch.device("mps"))


def test_a_backend_that_tells_no_random_state_is_left_out(monkeypatch):
    Accelerator.standing_for("privateuseone", monkeypatch, lacks=("get_rng_state",))
    assert not RNGSources([torch.device("privateuseone", 0)]).on_devices


def test_noise_of_a_device_is_replayed(kind, monkeypatch):
    """Its tensors lie on the CPU here; its stream is one that only the device's module knows."""
    module = Accelerator.standing_for(kind, monkeypatch)
    (generator,) = module.default_generators
    monkeypatch.setattr(
        "chainograd.engine.prepare.RNGSources",
        lambda used, generators: RNGSources([torch.device(kind, 0)], generators),
    )
    w = torch.full((), 0.9, requires_grad=True)

    def step(x, i):
        return torch.sin(w * x) * torch.rand(4, generator=generator)

    def gradient(run):
        generator.manual_seed(3)
        return torch.autograd.grad(run(torch.ones(4)).sum(), w)[0], torch.rand(
            1, generator=generator
        )

    def loop(x):
        for i in range(5):
            x = step(x, i)
        return x

    got, expected = gradient(CheckpointedChain(step, 5)), gradient(loop)
    assert all(map(torch.equal, got, expected))


def test_a_report_reads_the_events_of_the_device_and_waits_once_it_is_asked(kind, monkeypatch):
    module = Accelerator.standing_for(kind, monkeypatch)
    log = Log(torch.device(kind, 0))
    began = log.now()
    log.now()
    log.ran("forward", 0, began)
    log.sent(0, {0: torch.tensor([3.0, 4.0]), 1: torch.full((1000,), 2.0)})
    log.settle()
    assert all(isinstance(norm, torch.Tensor) for norm in log.norms[0])  # not yet asked for
    assert not began.waited_for

    (row,) = log.report(1, None).steps
    assert row.forward_seconds == pytest.approx(2e-3)
    assert row.cotangent_norm == pytest.approx((25 + 4000) ** 0.5)
    assert not [entry for entry in module.log if entry[0] == "synchronize"]


@pytest.mark.parametrize("lack", ["Event", "elapsed_time"])
def test_without_timing_events_the_device_is_waited_for_and_the_host_reads_the_clock(
    lack, monkeypatch
):
    module = Accelerator.standing_for("privateuseone", monkeypatch)
    event = None if lack == "Event" else SimpleNamespace()
    monkeypatch.setattr(Accelerator, "Event", event)
    device = torch.device("privateuseone", 0)
    began = devices.moment(device)
    time.sleep(0.01)
    ended = devices.moment(device)

    assert module.log == [("synchronize", 0)] * 2
    assert devices.seconds_between(began, ended) >= 0.01


def test_an_event_is_recorded_on_the_stream_of_its_own_device(monkeypatch):
    Accelerator.standing_for("cuda", monkeypatch)
    assert isinstance(devices.moment(torch.device("cuda", 0)), Event)  # `record` needs the stream


def test_a_device_with_one_queue_has_no_current_stream(monkeypatch):
    Accelerator.standing_for("xpu", monkeypatch)
    assert devices.current_stream(torch.device("xpu", 0)).name == "main"
    assert devices.current_stream(CPU) is None
    Accelerator.standing_for("mps", monkeypatch, lacks=("current_stream",))
    assert devices.current_stream(torch.device("mps")) is None


def test_a_large_gradient_from_another_stream_is_not_added_where_it_arises(monkeypatch):
    streams = iter(["main", "side", "main"])
    monkeypatch.setattr("chainograd.engine.accumulate.current_stream", lambda device: next(streams))
    sums = GradAccumulator(1)
    sums.values[0] = torch.ones(3)
    adding = sums._adding(0, 0, sums.values[0])

    assert adding((torch.ones(3),), None) is None
    assert adding((torch.ones(3),), None) == (None,)
    assert torch.equal(sums.values[0], torch.full((3,), 2.0))


def test_pinned_memory_is_returned_where_torch_can(monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "accelerator", SimpleNamespace(empty_host_cache=lambda: calls.append(1)),
        raising=False,
    )  # fmt: skip
    devices.unpin_unused()
    monkeypatch.setattr(torch, "accelerator", SimpleNamespace())
    devices.unpin_unused()
    monkeypatch.delattr(torch, "accelerator")
    devices.unpin_unused()
    assert calls == [1]
