"""A UNet whose parts are compiled is the same UNet, and trains the same."""

import shutil
from dataclasses import asdict
from functools import partial

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.compiled import compile_parts
from hdiscovery.training.loop import train

from tests.hdiscovery.tiny import assert_same, tiny

# Dynamo looks at the gradient of every tensor that it is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def traced(monkeypatch):
    """Let torch.compile trace, and run what it traced as it is; return the traced graphs."""
    graphs = []

    def as_it_is(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=as_it_is))
    return graphs


def backward(d, x_T, k, s):
    """Return x_0 and what a loss on it leaves in the shift block."""
    x_0 = d.shifted(x_T, k, s)
    d.shift_block.zero_grad()
    x_0.square().sum().backward()
    return [x_0.detach(), *(p.grad.clone() for p in d.shift_block.parameters())]


@pytest.mark.parametrize("plan", ["nodes", "graph"])
def test_traced_parts_give_the_same_samples_to_the_bit_and_the_same_gradients(traced, plan):
    d = tiny(plan=plan)
    drawn = d.draw(4)
    drawn = (drawn[0].double(), drawn[1], drawn[2].double())
    expected = backward(d, *drawn)
    compile_parts(d.dm.unet)
    found = backward(d, *drawn)
    assert torch.equal(expected[0], found[0])
    for a, b in zip(expected[1:], found[1:], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-10)  # gradients of 1e2 to 1e4
    # Stages of the encoder halve images, the middle attends, the decoder doubles them.
    called = {getattr(n.target, "__name__", n.target) for g in traced for n in g.graph.nodes}
    assert called >= {"conv2d", "scaled_dot_product_attention", "interpolate"}


@pytest.mark.parametrize("plan", ["graph", "nodes", "1GiB"])
def test_a_run_with_compile_ends_as_one_without(traced, config, tmp_path, plan):
    for name, compile_ in (("plain", False), ("compiled", True)):
        own = config.replace(compile=compile_, plan=plan)
        run = RunFolder.create(tmp_path / name, asdict(own))
        records = list(train(run, own))
        assert len(records) == config.training.steps
        assert bool(traced) == compile_
    assert_same(RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "compiled"))


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ("evaluate RUN --only rca --pairs 4", "rca.json"),
        ("rank RUN --samples 2 --shifts 3 --references 5", "ranking.json"),
    ],
)
def test_a_command_compiles_where_it_is_told_to(
    traced, config, tmp_path, words, written
):  # fmt: skip
    run = RunFolder.create(tmp_path / "run", asdict(config))
    list(train(run, config))
    told = []
    for extra in ([], ["--compile"]):
        command = words.replace("RUN", str(run.path)).split()
        assert main([*command, "--device", "cpu", *extra]) == 0
        told.append(run.read_json(written))
        assert bool(traced) == bool(extra)
    assert told[0] == told[1]


@pytest.mark.slow  # inductor's C++ is compiled for one to four minutes
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_what_inductor_makes_agrees_to_rounding_and_repeats_itself():
    torch.compiler.reset()
    unet = tiny(torch.float32).dm.unet
    x, t = torch.randn(4, 1, 8, 8, requires_grad=True), torch.tensor([3, 400, 700, 999])

    def output_and_gradient():
        y = unet(x, t)
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    expected = output_and_gradient()
    compile_parts(unet)
    found, again = output_and_gradient(), output_and_gradient()
    for a, b, c in zip(expected, found, again, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * a.abs().max().item())
        assert torch.equal(b, c)
