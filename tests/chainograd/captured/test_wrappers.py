"""What others wrap around modules and functions: noted, or refused with the way out."""

import functools

import pytest
import torch
from torch import nn

from chainograd import ChainError, CheckpointedChain
from chainograd.captured.find import find_captured
from tests.chainograd.captured.held import M, layers


def compiled_in(kind):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    compiled = functools.partial(torch.compile, backend="eager")
    if kind == "whole step":
        return compiled(lambda x, i: net(x))
    if kind == "network":
        net = compiled(net)
    elif kind == "network in place":
        net.compile(backend="eager")
    elif kind == "block":
        net[1].compile(backend="eager")
    elif kind == "block inside":
        net[1] = compiled(net[1])
    elif kind == "function":
        f = compiled(torch.tanh)
        return lambda x, i: f(net(x))
    elif kind == "method":
        net.forward = compiled(net.forward)
    elif kind == "partial":
        return functools.partial(compiled(lambda net, x, i: net(x)), net)
    elif kind == "method of a class":

        class Step:
            @compiled
            def inner(self, x):
                return net(x)

            def __call__(self, x, i):
                return self.inner(x)

        return Step()
    elif kind == "kept out":
        net.forward = torch.compiler.disable(net.forward)
    return lambda x, i: net(x)


@pytest.mark.parametrize("kind", ["whole step", "network", "network in place", "block",
                                  "block inside", "function", "method", "partial",
                                  "method of a class"])  # fmt: skip
def test_compiled_parts_of_a_step_are_noted(kind):
    assert find_captured(compiled_in(kind)).compiled


@pytest.mark.parametrize("kind", ["nothing", "kept out"])
def test_parts_that_are_not_compiled_are_not_noted(kind):
    torch.compile(compiled_in("nothing"), backend="eager")  # which another step uses

    assert not find_captured(compiled_in(kind)).compiled


def wrapper(name, module, **members):
    """Return a module whose class only looks like one of another library."""
    return type(name, (nn.Sequential,), {"__module__": module, **members})(nn.Linear(8, 8))


def test_fsdp1_is_refused_with_the_way_out():
    net = wrapper("FullyShardedDataParallel", "torch.distributed.fsdp.fully_sharded_data_parallel")

    with pytest.raises(ChainError, match=r"FSDP1.*fully_shard\(module\)"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_engine_of_deepspeed_is_refused_in_stage_3(stage):
    net = wrapper("DeepSpeedEngine", "deepspeed.runtime.engine",
                  zero_optimization_stage=lambda self: stage)  # fmt: skip
    chain = CheckpointedChain(lambda x, i: net(x), M)
    if stage < 3:
        chain(torch.ones(4, 8)).sum().backward()
        assert net[0].weight.grad is not None
    else:
        with pytest.raises(ChainError, match=r"an engine of DeepSpeed ZeRO stage 3.*stage 1 or 2"):
            chain(torch.ones(4, 8))


def test_a_parameter_that_deepspeed_partitions_is_refused():
    net = nn.Linear(8, 8)
    net.weight.ds_id, net.weight.ds_shape = 0, torch.Size((8, 8))

    with pytest.raises(ChainError, match=r"a parameter of shape \(8, 8\) of DeepSpeed"):
        CheckpointedChain(lambda x, i: net(x), M)(torch.ones(4, 8))


@pytest.mark.parametrize("name", ["GradSampleModule", "GradSampleModuleFastGradientClipping"])
def test_a_module_that_counts_forward_passes_is_named(name):
    module = "opacus.grad_sample.grad_sample_module"
    base = type("GradSampleModule", (nn.Sequential,), {"__module__": module})
    net = base(nn.Linear(8, 8)) if name == base.__name__ else type(name, (base,), {})()
    held = nn.ModuleList([net])

    assert find_captured(lambda x, i: held(x)).counts_passes == f"{module}.GradSampleModule"
    assert find_captured(lambda x, i: layers()).counts_passes is None


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "default"])
def test_steps_that_are_replayed_as_cuda_graphs_are_refused_on_an_accelerator(mode, monkeypatch):
    compiled, whole, net = (
        torch.compile(nn.Linear(2, 2), mode=mode),
        nn.Linear(2, 2),
        nn.Linear(2, 2),
    )
    whole.compile(mode=mode)
    function = torch.compile(lambda x: torch.tanh(net(x)), mode=mode)
    for called in (compiled, whole, function):
        assert find_captured(lambda x, i, called=called: called(x)).cuda_graphs == (
            mode != "default"
        )
    monkeypatch.setattr("chainograd.engine.prepare.is_accelerator", lambda device: True)
    if mode != "default":
        with pytest.raises(ChainError, match="max-autotune-no-cudagraphs"):
            CheckpointedChain(lambda x, i: compiled(x), 2)(torch.ones(2))
