"""The preflight: each finding is provoked, and is not there where all is well."""

import itertools
import math
import random
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import chainograd.chain
from chainograd import ChainError, CheckpointedChain, Finding, ScaledInput, Store
from chainograd.captured.find import find_captured
from tests.problems import Counted, Net

M = 20


def line(mark):
    """Return ``file:line`` of the line that ends in a comment."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [n for n, text in enumerate(lines, 1) if text.endswith(f"  # {mark}")]
    return f"{__file__}:{number}"


def kinds(step, x=None, *, loss=None, num_steps=M, args=(), **options):
    x = torch.randn(4, 8) if x is None else x
    findings = CheckpointedChain(step, num_steps, **options).check(x, *args, loss=loss)
    return [finding.kind for finding in findings]


def only(step, x=None, **kwargs):
    x = torch.randn(4, 8) if x is None else x
    (finding,) = CheckpointedChain(step, M).check(x, **kwargs)
    assert "\n" not in str(finding)
    return finding


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(8, torch.float32)


def squares(x):
    return x.square().sum()


# Nothing to find


def test_a_good_chain_has_no_findings_and_says_what_was_looked_at(net):
    findings = CheckpointedChain(net, M).check(torch.randn(4, 8), loss=squares)

    assert not findings
    assert len(findings) == 0
    assert "0, 1, 2, 19" in str(findings)
    assert "\n" not in str(findings)


def test_findings_print_as_a_line_each_with_their_step_and_place():
    finding = Finding("noise", 3, "step.py:7", "Draws.")

    assert str(finding) == "noise (step 3, step.py:7): Draws."
    assert str(Finding("refused", None, None, "No.")) == "refused: No."
    w = torch.ones(8, requires_grad=True)
    findings = CheckpointedChain(lambda x, i: F.dropout(w * x.detach()), M).check(torch.ones(8))
    assert str(findings).splitlines() == [str(finding) for finding in findings]
    assert len(findings) == 2


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 50])
def test_the_first_three_steps_and_the_last_are_run_closely_and_all_of_them_once(num_steps, net):
    step = Counted(net)
    CheckpointedChain(step, num_steps).check(torch.randn(4, 8))

    closely = {*range(min(3, num_steps)), num_steps - 1}
    assert set(step.runs) == set(range(num_steps))
    assert {i for i in step.runs if step.runs.count(i) > 1} == closely
    if num_steps > 3:
        assert len(step.runs) == 13 + num_steps


@pytest.mark.parametrize(
    "options",
    [
        {"plan": "graph"},
        {"plan": "1MiB"},
        {"micro_batch": 2},
        {"frozen": "auto"},
        {"store": Store(dtype=torch.bfloat16)},
        {"grad_steps": 1},
        {"grad_steps": lambda M: 1 / 0},
        {"grad_transform": lambda i, g: 2 * g},
        {"verify": "off"},
    ],
    ids=lambda options: " ".join(options),
)
def test_no_option_of_a_chain_makes_a_finding(options, net):
    assert kinds(net, **options) == []


def test_a_state_may_be_a_carry_with_what_is_not_a_tensor(net):
    def step(carry, i):
        x, memory = carry
        previous = memory.get("previous", 0 * x)
        return net(x, i) + 0.1 * previous, {"previous": x, "index": i, "nothing": None}

    x = torch.randn(4, 8, requires_grad=True)

    assert kinds(step, (x, {}), loss=lambda carry: squares(carry[0])) == []


def test_states_may_be_complex_and_computed_under_autocast():
    w = torch.randn(8, dtype=torch.complex64, requires_grad=True)
    assert kinds(lambda x, i: torch.sin(w * x), torch.randn(8, dtype=torch.complex64)) == []

    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert kinds(lambda x, i: torch.tanh(layer(x)).float()) == []


def test_arguments_and_what_is_used_in_the_last_step_only_are_no_findings(net):
    c = torch.randn(8, requires_grad=True)

    assert kinds(lambda x, i, c: net(x, i, c), args=(c,)) == []
    assert kinds(lambda x, i: torch.tanh(x * c) if i == M - 1 else 0.9 * x) == []


def test_gradient_checkpointing_inside_a_step_is_no_finding(net):
    def step(x, i):
        return checkpoint(lambda x: net(x, i), x, use_reentrant=False)

    assert kinds(step) == []


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_that_no_gradient_can_be_asked_through_is_refused(net):
    def step(x, i):
        return checkpoint(lambda x: net(x, i), x, use_reentrant=True)

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert finding.kind == "refused"
    assert "use_reentrant=False" in finding.text


def test_a_chain_inside_a_step_is_no_finding(net):
    inner = CheckpointedChain(net, 2)

    assert kinds(lambda x, i: torch.tanh(inner(x))) == []


def test_a_custom_autograd_function_is_no_finding():
    w = torch.ones(8, requires_grad=True)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.detach() * 2

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    assert kinds(lambda x, i: torch.tanh(Twice.apply(w * x).add_(1))) == []


def test_an_attention_block_is_no_finding():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    layer.dropout.p = layer.dropout1.p = layer.dropout2.p = layer.self_attn.dropout = 0.0

    assert kinds(lambda x, i: layer(x), torch.randn(2, 4, 8)) == []


# Gradients turned off


def test_a_no_grad_block_that_the_outcome_depends_on_is_named_with_its_line(net):
    def step(x, i):
        with torch.no_grad():  # a block
            return net(x, i)

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("gradients off", 0, line("a block"))
    assert "decorator" in finding.text


def test_a_decorated_step_is_named_with_the_line_of_its_decorator(net):
    @torch.no_grad()  # a decorator
    def step(x, i):
        return net(x, i)

    assert only(step).where == line("a decorator")


def test_a_decorated_function_is_named_with_the_line_that_calls_it(net):
    pipeline = torch.no_grad()(net.forward)

    def step(x, i):
        return pipeline(x, i)  # a call

    finding = only(step)

    assert (finding.kind, finding.where) == ("gradients off", line("a call"))


def test_inference_mode_in_a_step_is_gradients_turned_off(net):
    def step(x, i):
        with torch.inference_mode():
            y = x + 1
            return torch.tanh(y @ net.w)  # in inference mode

    finding = only(step)

    assert (finding.kind, finding.where) == ("gradients off", line("in inference mode"))


def test_a_part_without_gradients_is_something_to_look_at(net):
    def step(x, i):
        with torch.no_grad():  # a part
            guidance = net(x, i)
        return net(x, i) + guidance

    finding = only(step)

    assert (finding.kind, finding.where) == ("partly detached", line("a part"))
    assert "If that is not meant" in finding.text


def test_what_is_computed_without_gradients_and_not_used_is_no_finding(net):
    seen = []

    def step(x, i):
        y = net(x, i)
        with torch.no_grad():
            seen.append(y.square().mean().item())
            mask = torch.zeros_like(y)
        seen.append(y.detach().abs().max().item())
        return y + mask

    assert kinds(step) == []


# Detached


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: y.detach(),
        lambda y: y.data,
        lambda y: torch.from_numpy(y.detach().numpy()),
        lambda y: torch.tensor(y.tolist()),
        lambda y: torch.autograd.grad(y.square().sum(), y)[0],
    ],
    ids=["detach", "data", "numpy", "tolist", "grad"],
)
def test_a_step_that_detaches_its_outcome_is_named(cut, net):
    def step(x, i):
        with torch.enable_grad():  # for the last of the cuts, in a rerun too
            return torch.tanh(cut(net(x, i)))

    finding = only(step)

    assert (finding.kind, finding.step) == ("detached", 0)
    assert finding.where.startswith(f"{__file__}:")


def test_a_detached_input_leaves_no_way_through_a_step(net):
    def step(x, i):
        return net(x.detach(), i)  # an input

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("detached", M - 1, line("an input"))
    assert "grad_steps=1" in finding.text


def test_a_step_that_does_not_use_its_state_has_no_way_through(net):
    assert only(lambda x, i: net.b.expand(4, 8) * (i + 1)).kind == "no gradient"


def test_a_detached_part_is_something_to_look_at(net):
    def step(x, i):
        return net(x, i) / x.detach().abs().max()  # a scale

    finding = only(step)

    assert (finding.kind, finding.where) == ("partly detached", line("a scale"))


def test_a_leaf_of_the_state_that_is_detached_is_something_to_look_at(net):
    def step(state, i):
        x, previous = state
        e = net(x, i)
        return e + 0.5 * previous, e.detach()  # a history

    finding = only(step, (torch.randn(4, 8), torch.zeros(4, 8)))

    assert (finding.kind, finding.where) == ("partly detached", line("a history"))


def test_a_number_taken_out_of_a_tensor_is_something_to_look_at(net):
    def step(x, i):
        return net(x, i) / x.std().item()  # a number

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert (finding.kind, finding.where) == ("partly detached", line("a number"))
    assert "only looked at" in finding.text


def test_what_a_library_stops_by_design_is_no_finding(net):
    stopped = ScaledInput(net, scale=0)

    assert kinds(lambda x, i: 0.9 * x + stopped(x, i)) == []


def test_something_to_train_that_these_steps_do_not_reach_is_named():
    w = torch.ones(8, requires_grad=True)

    finding = only(lambda x, i: w * x if i == 5 else 0.9 * x)

    assert finding.kind == "no gradient"
    assert "other step" in finding.text


# The loss


def test_a_loss_under_no_grad_is_named_with_its_line(net):
    def loss(x):
        with torch.no_grad():  # a decoder
            image = x * 2
        return image.mean()

    finding = only(net, loss=loss)

    assert (finding.kind, finding.step, finding.where) == ("gradients off", None, line("a decoder"))


def test_a_detached_decode_is_named_with_its_line(net):
    finding = only(net, loss=lambda x: (2 * x.detach()).mean())

    assert finding.kind == "detached"
    assert "The loss" in finding.text


def test_a_loss_that_is_a_number_has_no_gradient(net):
    assert only(net, loss=lambda x: x.sum().item()).kind == "detached"
    assert only(net, loss=lambda x: 3.0).kind == "no gradient"


def test_a_partly_detached_loss_is_something_to_look_at(net):
    assert kinds(net, loss=lambda x: (x * x.detach()).sum()) == ["partly detached"]
    assert kinds(net, loss=lambda x: (x / x.std().item()).sum()) == ["partly detached"]


def test_a_loss_that_does_not_depend_on_the_state_is_named(net):
    finding = only(net, loss=lambda x: net.w.square().sum())

    assert finding.kind == "no gradient"
    assert "with regard to the state" in finding.text


def test_a_loss_for_each_sample_will_do(net):
    assert kinds(net, loss=lambda x: x.square().mean(1)) == []


# Layers in training


def test_active_dropout_is_named_with_its_module(net):
    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.1))

        def forward(self, x, i):
            return torch.tanh(self.blocks(x))

    step = Deep()
    finding = only(step)

    assert finding.kind == "dropout"
    assert "`Deep.blocks.1`" in finding.text
    assert "eval()" in finding.text
    assert kinds(step.eval()) == []
    assert kinds(lambda x, i: F.dropout(net(x, i), 0.2)) == ["dropout"]


def test_dropout_of_attention_weights_is_dropout():
    layer = torch.nn.Linear(8, 8)

    def step(x, i):
        y = layer(x)[:, None]
        return torch.tanh(F.scaled_dot_product_attention(y, y, y, dropout_p=0.1)[:, 0])

    assert kinds(step) == ["dropout"]


def test_batch_norm_in_training_is_named_with_its_module():
    step = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    run = lambda x, i: torch.tanh(step(x))  # noqa: E731
    finding = only(run)

    assert finding.kind == "batch norm"
    assert "`Sequential.1`" in finding.text
    assert step[1].num_batches_tracked == 0
    assert torch.equal(step[1].running_var, torch.ones(8))
    step.eval()
    assert kinds(run) == []


# Noise


def test_noise_from_the_global_stream_is_named_and_is_not_called_wrong(net):
    def step(x, i):
        return net(x, i) + 0.1 * torch.randn_like(x)  # a draw

    finding = only(step)

    assert (finding.kind, finding.step, finding.where) == ("noise", 0, line("a draw"))
    assert "the gradient is right" in finding.text
    assert "SeededNoise" in finding.text


def test_noise_from_python_is_noise(net):
    assert only(lambda x, i: net(x, i) * random.random()).kind == "noise"


def test_noise_of_named_generators_and_of_seeds_is_a_value(net):
    generator = torch.Generator().manual_seed(0)

    def named(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator)

    def fresh(x, i):
        return net(x, i) + torch.randn(x.shape, generator=torch.Generator().manual_seed(i))

    def seeded(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator.manual_seed(i))

    def seeding(x, i):
        with torch.random.fork_rng():
            torch.manual_seed(i + 5)
            return net(x, i) + torch.randn(x.shape)

    assert kinds(named, generators=[generator]) == []
    assert kinds(fresh) == []
    assert kinds(seeded) == []
    assert kinds(seeding) == []


def test_a_generator_that_the_chain_does_not_know_is_named_and_put_back(net):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()

    def step(x, i):
        return net(x, i) + torch.randn(x.shape, generator=generator)  # a generator

    finding = only(step)

    assert (finding.kind, finding.where) == ("unknown generator", line("a generator"))
    assert "generators=[generator]" in finding.text
    assert torch.equal(generator.get_state(), before)


# Changed in place, not repeatable


def test_a_state_changed_in_place_is_named_with_its_line(net):
    def step(x, i):
        x += 1  # a state
        return net(x, i)

    x = torch.zeros(4, 8)
    finding = only(step, x)

    assert (finding.kind, finding.step, finding.where) == ("changed in place", 0, line("a state"))
    assert "x = x + …" in finding.text
    assert not x.any()
    assert kinds(step, torch.zeros(4, 8, requires_grad=True)) == ["changed in place"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(2),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: F.relu(x, inplace=True),
        lambda x: torch.add(x, 1, out=x),
        lambda x: x.data.mul_(2),
    ],
    ids=["method", "item", "layer", "out", "data"],
)
def test_every_way_to_change_a_state_in_place_is_seen(change, net):
    def step(x, i):
        with torch.no_grad():
            change(x)
        return net(x, i)

    x = torch.randn(4, 8)
    before = x.clone()

    assert "changed in place" in kinds(step, x)
    assert torch.equal(x, before)


def test_an_argument_changed_in_place_is_named_and_put_back(net):
    def step(x, i, table):
        table[0] += 1  # an argument
        return net(x, i)

    table = torch.zeros(3)
    (finding,) = CheckpointedChain(step, M).check(torch.randn(4, 8), table)

    assert (finding.kind, finding.where) == ("changed in place", line("an argument"))
    assert not table.any()


def test_a_parameter_or_a_buffer_changed_in_place_is_named_and_put_back(net):
    net.register_buffer("mean", torch.zeros(8))
    net.eval()

    def average(x, i):
        net.mean.lerp_(x.detach().mean(0), 0.1)  # a buffer
        return net(x, i)

    def decay(x, i):
        with torch.no_grad():
            net.b.mul_(0.9)  # a parameter
        return net(x, i)

    before = net.b.detach().clone()

    assert only(average).where == line("a buffer")
    assert not net.mean.any()
    assert only(decay).where == line("a parameter")
    assert torch.equal(net.b, before)


def test_a_tensor_of_the_steps_own_may_be_changed_in_place(net):
    def step(x, i):
        y = torch.zeros_like(x)
        y += x
        y[0] = 2 * y[0]
        return F.relu(net(y, i) + 1, inplace=True)

    assert kinds(step) == []


def test_a_cache_that_is_filled_once_is_no_finding(net):
    cache = torch.zeros(8)

    def step(x, i):
        if not cache.any():
            cache.fill_(0.5)
        return net(x, i) * cache

    assert kinds(step) == []


def test_a_step_that_counts_its_calls_is_named_with_the_difference(net):
    step = Counted(lambda x, i: net(x, i) + len(step.runs))
    finding = only(step)

    assert (finding.kind, finding.step) == ("not repeatable", 0)
    assert "largest difference" in finding.text
    assert "carry what the step remembers in the state" in finding.text


def test_a_step_that_fails_when_it_is_run_again_is_named(net):
    steps = iter(range(4))

    def step(x, i):
        return net(x, i) * math.exp(0.0 * next(steps))

    finding = only(step)

    assert finding.kind == "not repeatable"
    assert "StopIteration" in finding.text


def test_a_gradient_that_is_not_that_of_the_plain_loop_is_named_with_the_difference(net):
    def moody(x, i):
        # The same values, but from the fourth call on another gradient.
        return net(ScaledInput(lambda y: y, scale=0.5 if len(step.runs) > 3 else 1.0)(x), i)

    step = Counted(moody)
    (finding,) = CheckpointedChain(step, 3).check(torch.randn(4, 8, requires_grad=True))

    assert finding.kind == "not exact"
    assert "of its size apart" in finding.text


# What there is to train


def test_a_chain_in_which_nothing_is_trained_is_named(net):
    net.requires_grad_(False)

    assert only(net).kind == "nothing to train"
    assert kinds(net, torch.randn(4, 8, requires_grad=True)) == []
    assert kinds(lambda x, i: net(x.detach(), i)) == ["nothing to train", "detached"]


def test_a_tensor_that_the_chain_cannot_see_is_named_with_the_way_out():
    hidden = itertools.repeat(torch.ones(8, requires_grad=True))
    finding = only(lambda x, i: torch.tanh(next(hidden) * x))

    assert finding.kind == "captured tensor"
    assert "params=[tensor]" in finding.text


# Numbers


def test_the_first_state_that_is_not_finite_is_named(net):
    x = torch.randn(4, 8)
    x[0, 0] = math.nan

    def step(x, i):
        return {"x": torch.log(x["x"]) if i == 1 else net(x["x"], i)}

    finding = only(step, {"x": torch.randn(4, 8)})

    assert (finding.kind, finding.step) == ("not finite", 1)
    assert "['x']" in finding.text
    assert "`x` is not finite in 1 of 32 numbers" in only(net, x).text


def test_a_cotangent_that_is_not_finite_is_named_with_its_step(net):
    def step(x, i):
        return torch.sqrt(torch.relu(x) * 0) + net(x, i) if i == 1 else net(x, i)

    finding = only(step)

    assert (finding.kind, finding.step) == ("not finite", 1)
    assert "epsilon" in finding.text


def test_a_gradient_of_the_loss_that_is_zero_or_not_finite_is_laid_to_no_step(net):
    infinite = only(net, loss=lambda x: torch.sqrt((0 * x).sum()))
    zero = only(net, loss=lambda x: (x.clamp(-9, 9) * 0).sum())

    assert (infinite.kind, infinite.step) == ("not finite", None)
    assert (zero.kind, zero.step) == ("gradient dies", None)
    assert "The gradient of the loss" in zero.text


def test_a_gradient_that_dies_is_named_with_its_step(net):
    def step(x, i):
        return net(x.clamp(7, 8) if i == 2 else x, i)

    finding = only(step, torch.randn(4, 8, requires_grad=True))

    assert (finding.kind, finding.step) == ("gradient dies", 2)
    assert "clamp" in finding.text


# No trace, no exception


def test_a_check_leaves_no_trace(net):
    net.dropout = torch.nn.Dropout(0.3)
    net.norm = torch.nn.BatchNorm1d(8)
    chain = CheckpointedChain(lambda x, i: net.norm(net.dropout(net(x, i))), M)
    x = torch.randn(4, 8, requires_grad=True)
    chain(x).sum().backward()
    report, grads = str(chain.report()), [p.grad.clone() for p in net.parameters()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    versions = [p._version for p in net.parameters()]
    streams = torch.get_rng_state(), random.getstate()

    with torch.no_grad():
        assert chain.check(x, loss=lambda x: squares(x) * torch.rand(()))
        assert not torch.is_grad_enabled()

    assert str(chain.report()) == report
    assert all(map(torch.equal, grads, (p.grad for p in net.parameters())))
    assert all(map(torch.equal, buffers, net.buffers()))
    assert versions == [p._version for p in net.parameters()]
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert net.training
    assert x.is_leaf
    assert x.requires_grad


def test_a_check_sees_the_same_where_gradients_are_turned_off_around_it(net):
    with torch.no_grad():
        assert kinds(net, loss=squares) == []
        assert kinds(lambda x, i: net(x, i).detach()) == ["detached"]


def test_a_last_step_that_cannot_take_this_state_is_left_out(net):
    def fails(x, i):
        return net(x, i) if i < M - 1 else 1 / 0

    def overflows(x, i):
        return net(x, i) / (i < M - 1)

    assert "steps 0, 1, 2:" in str(CheckpointedChain(fails, M).check(torch.randn(4, 8)))
    assert "steps 0, 1, 2:" in str(CheckpointedChain(overflows, M).check(torch.randn(4, 8)))


def test_an_error_of_the_steps_own_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        CheckpointedChain(lambda x, i: x / (1 // i), M).check(torch.ones(1))


def test_what_the_chain_would_refuse_is_a_finding():
    norm = torch.nn.BatchNorm1d(8)
    finding = CheckpointedChain(lambda x, i: norm(x), M, micro_batch=2).check(torch.randn(4, 8))[0]

    assert finding.kind == "refused"
    assert "micro_batch=2" in finding.text
    with pytest.raises(ChainError):
        CheckpointedChain(lambda x, i: norm(x), M, micro_batch=2)(torch.randn(4, 8))


def test_tensors_without_values_or_without_gradients_are_refused_with_the_way_out(net):
    with torch.inference_mode():
        x = torch.randn(4, 8)
    assert "x.clone()" in only(net, x).text
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert "real ones" in only(net, torch.randn(4, 8)).text


def test_a_network_that_fsdp_shards_is_refused_before_anything_runs(net, monkeypatch):
    def found(step, others):
        return find_captured(step, others)._replace(sharded=[net])

    monkeypatch.setattr(chainograd.chain, "find_captured", found)
    step = Counted(net)

    assert "fully_shard" in only(step).text
    assert step.runs == []


def test_a_library_of_torch_that_turns_gradients_off_in_part_is_no_finding():
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(8, 8))

    # It moves its estimate at every run, which a chain refuses; its own no_grad is not reported.
    assert kinds(lambda x, i: torch.tanh(layer(x))) == ["not repeatable"]
    layer.eval()
    assert kinds(lambda x, i: torch.tanh(layer(x))) == []


def test_kernels_that_differ_with_and_without_gradients_are_those_of_the_plain_loop():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()

    assert kinds(lambda x, i: layer(x), torch.randn(2, 4, 8)) == []


# diffusers


def test_a_diffusers_unet_and_its_ddim_scheduler_are_no_finding():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(M)

    def step(x, i):
        t = scheduler.timesteps[i]
        return scheduler.step(unet(x, t).sample, t, x).prev_sample

    assert kinds(step, torch.randn(2, 1, 8, 8), loss=squares) == []


def test_a_diffusers_scheduler_that_counts_its_steps_is_named(net):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, for numpy 2
        scheduler.set_timesteps(M)

    def step(x, i):
        t = scheduler.timesteps[i]
        return scheduler.step(net(scheduler.scale_model_input(x, t), i), t, x).prev_sample

    assert kinds(step) == ["not repeatable"]
