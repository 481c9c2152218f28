"""Attention's outputs: a rerun with them runs no kernel, and has the same bits."""

import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from chainograd import ReplayError
from chainograd.blocks.attention import keeping, replaying
from chainograd.frozen.layers import FrozenLayers
from chainograd.replay.verify import Verifier
from chainograd.torch_internals.attention import FUSED_KERNELS
from chainograd.torch_internals.modes import dispatch_modes
from tests.problems import leaf

MASK = torch.ones(24, 24).tril()
CALLS = {
    "alone": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "masked by numbers": {"attn_mask": MASK},
    "masked by truth values": {"attn_mask": MASK.bool()},
}
ops = torch.ops.aten


class KernelCalls(TorchDispatchMode):
    """Lists the fused kernels that run."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [func] if func in FUSED_KERNELS else []
        return func(*args, **(kwargs or {}))


class EachFunction(TorchFunctionMode):
    """A mode of the user's own."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class As(TorchFunctionMode):
    """Lets another function be called in the place of attention."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = self.attention if func is F.scaled_dot_product_attention else func
        return func(*args, **(kwargs or {}))


class Attention(nn.Module):
    """Two layers of self-attention with projections."""

    def __init__(self, width=32, heads=4, kv_heads=4, **options):
        super().__init__()
        self.heads, self.kv_heads, self.options = heads, kv_heads, options
        kv = width // heads * kv_heads
        self.q, self.k, self.v = (nn.Linear(width, n) for n in (width, kv, kv))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """Return the next hidden state."""
        for _ in range(2):
            q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = (
                project(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
                for project in (self.k, self.v)
            )
            attended = F.scaled_dot_product_attention(q, k, v, **self.options)
            x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x


def attend(x):
    return F.scaled_dot_product_attention(x, x, x)


def gradients(block, y, leaves):
    used = [*leaves, *block.parameters()] if isinstance(block, nn.Module) else leaves
    return torch.autograd.grad(y.float().square().sum(), used, allow_unused=True)


def leaves_of(inputs):
    return [x.detach().requires_grad_() for x in inputs]


def plain(block, *inputs):
    leaves = leaves_of(inputs)
    y = block(*leaves)
    return [y.detach(), *gradients(block, y, leaves)]


def first_run(block, *inputs, recorded=False):
    """Run a block, keep attention's outputs, and throw its graph away."""
    if recorded:
        nothing = torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda t: t)
        with nothing, keeping() as outputs:
            block(*leaves_of(inputs))
        return outputs
    with keeping() as outputs, torch.no_grad():
        block(*inputs)
    return outputs


def rerun(block, outputs, *inputs):
    leaves = leaves_of(inputs)
    with replaying(outputs):
        y = block(*leaves)
    return [y.detach(), *gradients(block, y, leaves)]


def same_bits(block, *inputs, kept=None, again=0, recorded=False):
    """See that a rerun has the bits of a plain run, and runs no kernel; return what was kept.

    Args:
        block: A function of the inputs, or a module.
        inputs: Tensors.
        kept: How many calls must have been kept, if that matters.
        again: How many kernels must run again, in the backward pass.
        recorded: Whether the first run records a graph.
    """
    expected = plain(block, *inputs)
    outputs = first_run(block, *inputs, recorded=recorded)
    with KernelCalls() as kernels:
        found = rerun(block, outputs, *inputs)

    assert kept is None or len(outputs.calls) == kept
    assert len(kernels.seen) == again
    assert not any(tensor.requires_grad for tensor in outputs.tensors)
    equal(found, expected)
    return outputs


def equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


# Results and gradients


@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "recorded"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_a_rerun_runs_no_kernel_and_has_the_same_bits(options, dtype, recorded):
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options = {"attn_mask": mask.to(dtype)}
    block = Attention(**options).to(dtype)

    same_bits(block, torch.randn(2, 24, 32, dtype=dtype), kept=2, recorded=recorded)


def test_queries_may_share_keys_and_values():
    same_bits(Attention(kv_heads=2, enable_gqa=True), torch.randn(2, 24, 32), kept=2)


def test_queries_may_have_any_layout_and_another_length_than_keys():
    q = torch.randn(12, 2, 4, 16).permute(1, 2, 0, 3)
    k, v = torch.randn(2, 2, 4, 40, 16)[..., ::2, :].unbind()

    same_bits(F.scaled_dot_product_attention, q, k, v, kept=1)


def test_autocast_may_choose_the_dtype():
    block = Attention()

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return block(x)

    outputs = same_bits(cast, torch.randn(2, 24, 32), kept=2)
    assert outputs.tensors[0].dtype == torch.bfloat16


def test_an_attention_layer_of_torch_is_seen_although_it_hides_its_calls():
    layer = nn.MultiheadAttention(32, 4, batch_first=True)

    same_bits(lambda x: layer(x, x, x, need_weights=False)[0], torch.randn(2, 24, 32), kept=1)


def test_an_attention_layer_that_returns_its_weights_is_computed_again():
    layer = nn.MultiheadAttention(32, 4, batch_first=True)

    same_bits(lambda x: layer(x, x, x)[0], torch.randn(2, 24, 32), kept=0)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_of_torch_is_exact(norm_first):
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=norm_first)

    same_bits(layer, torch.randn(2, 24, 32), kept=1)


def test_a_block_of_stable_diffusion_is_exact():
    attention = pytest.importorskip("diffusers.models.attention")
    block = attention.BasicTransformerBlock(32, 4, 8, cross_attention_dim=16)

    def run(x, text):
        return block(x, encoder_hidden_states=text)

    same_bits(run, torch.randn(2, 24, 32), torch.randn(2, 7, 16), kept=2)


def test_a_block_of_flux_is_exact():
    flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")
    block = flux.FluxTransformerBlock(32, 4, 8)

    def run(x, text, embedding):
        return torch.cat(block(x, text, embedding), 1)

    same_bits(run, torch.randn(2, 24, 32), torch.randn(2, 7, 32), torch.randn(2, 32), kept=1)


def test_a_layer_of_a_language_model_is_exact():
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48
    )
    config._attn_implementation = "sdpa"
    layer, rope = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)

    def run(x):
        y = layer(x, position_embeddings=rope(x, torch.arange(24)[None]))
        return y if isinstance(y, torch.Tensor) else y[0]

    same_bits(run, torch.randn(2, 24, 32), kept=1)


def test_a_checkpoint_inside_a_block_runs_its_kernel_in_the_backward_pass():
    def block(x):
        return attend(checkpoint(attend, x.sin(), use_reentrant=False))

    same_bits(block, torch.randn(2, 4, 24, 8), kept=2, again=1)


def test_kept_outputs_serve_several_reruns():
    block, x = Attention(), torch.randn(2, 24, 32)
    outputs = first_run(block, x)

    equal(rerun(block, outputs, x), rerun(block, outputs, x))


# What is not kept


def test_a_call_with_dropout_is_computed_again_and_draws_again():
    def block(x):
        torch.manual_seed(3)
        y = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        return attend(F.dropout(y, 0.5))

    same_bits(block, torch.randn(2, 4, 24, 8), kept=1)


def test_a_call_without_a_fused_kernel_is_computed_again():
    def block(x):
        with sdpa_kernel(SDPBackend.MATH):
            return attend(x)

    same_bits(block, torch.randn(2, 4, 24, 8), kept=0)


def test_a_call_whose_result_was_changed_in_place_is_computed_again():
    other = torch.randn(2, 4, 24, 8)

    def block(x):
        y = attend(other)
        y.transpose(1, 2).mul_(2)
        return attend(x * y)

    x = torch.randn(2, 4, 24, 8)
    outputs = first_run(block, x)
    with KernelCalls() as kernels:
        found = rerun(block, outputs, x)

    assert len(kernels.seen) == 1
    assert len(outputs.tensors) == 2
    equal(found, plain(block, x))


def test_a_transform_sees_no_stand_ins():
    def block(x):
        return torch.func.grad(lambda x: attend(x).sin().sum())(x)

    x = torch.randn(2, 4, 24, 8)
    with keeping() as outputs:
        y = block(x)
    with replaying(outputs):
        again = block(x)

    assert outputs.calls == []
    assert torch.equal(y, again)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_block_is_exact_and_is_not_compiled_for_each_run(backend):
    torch.compiler.reset()
    compiled_graphs = []

    def count(graph, example_inputs):
        compiled_graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example_inputs)

    block, x = Attention(), torch.randn(2, 24, 32)
    compiled = torch.compile(block, backend=count, fullgraph=True)
    for _ in range(4):
        outputs = first_run(compiled, x, recorded=True)
        equal(rerun(compiled, outputs, x), plain(compiled, x))

    assert len(compiled_graphs) == 2  # with a function mode in force, and without
    # The backend "eager" calls torch's functions, so attention is seen.
    assert len(outputs.calls) == {"eager": 2, "aot_eager": 0}[backend]


# Kernels of accelerators, on fake tensors


def efficient(q, k, v):
    needs_log_sum_exp = torch.is_grad_enabled() and q.requires_grad
    return ops._scaled_dot_product_efficient_attention(q, k, v, None, needs_log_sum_exp)[0]


def cudnn(q, k, v):
    needs_log_sum_exp = torch.is_grad_enabled() and q.requires_grad
    return ops._scaled_dot_product_cudnn_attention(q, k, v, None, needs_log_sum_exp)[0]


def flash(q, k, v):
    return ops._scaled_dot_product_flash_attention(q, k, v)[0]


KERNELS = [flash, efficient, cudnn]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_a_gpu_are_kept_with_all_that_their_graph_needs(kernel):
    with FakeTensorMode(), As(kernel):
        x = torch.empty(2, 4, 24, 64, device="cuda", dtype=torch.bfloat16)
        outputs = first_run(attend, x)
        with KernelCalls() as kernels, replaying(outputs):
            y = attend(x.requires_grad_())

    assert len(outputs.calls) == 1
    assert kernels.seen == []
    assert "ScaledDotProduct" in y.grad_fn.name()
    assert y.shape == outputs.tensors[0].shape
    assert outputs.tensors[1].numel() >= 2 * 4 * 24  # the log-sum-exp, although nothing recorded


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_with_dropout_is_not_kept(kernel):
    def dropped(q, k, v):
        name = f"_scaled_dot_product_{kernel.__name__}_attention"
        given = {} if kernel is flash else {"attn_bias": None, "compute_log_sumexp": True}
        return getattr(ops, name)(q, k, v, **given, dropout_p=0.5)[0]

    with FakeTensorMode(), As(dropped):
        x = torch.empty(2, 4, 24, 64, device="cuda", dtype=torch.bfloat16)
        assert first_run(attend, x).calls == []


def test_a_call_without_the_log_sum_exp_is_computed_again_if_its_graph_needs_it():
    with FakeTensorMode(), As(efficient):
        x = torch.empty(2, 4, 24, 64, device="cuda")
        with keeping() as outputs:
            attend(x)  # recording is on, but x requires no gradient
        with KernelCalls() as kernels, replaying(outputs):
            attend(x.requires_grad_())

    assert len(kernels.seen) == 1


def test_fake_tensors_are_kept_as_they_are():
    with FakeTensorMode(allow_non_fake_inputs=True):
        block, x = Attention(), torch.randn(2, 24, 32)
        outputs = first_run(block, x)
        with KernelCalls() as kernels:
            found = rerun(block, outputs, x)

    assert kernels.seen == []
    assert found[0].shape == x.shape


# Modes


def frozen_block():
    conv = nn.Conv1d(24, 24, 3, padding=1).requires_grad_(False)
    return lambda x: conv(attend(conv(x)[:, None])[:, 0]), torch.randn(2, 24, 32)


def test_frozen_layers_save_less_in_a_rerun_inside_them():
    block, x = frozen_block()
    expected, outputs = plain(block, x), first_run(block, x)

    with KernelCalls() as kernels, FrozenLayers() as frozen:
        found = rerun(block, outputs, x)

    assert kernels.seen == []
    assert frozen.saving.saved == 2 * x.nbytes
    equal(found, expected)


def test_frozen_layers_inside_a_rerun_are_exact():
    block, x = frozen_block()

    def run(x):
        with FrozenLayers():
            return block(x)

    same_bits(run, x, kept=1)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", [EachFunction, KernelCalls, lambda: torch.device("cpu")])
def test_modes_of_the_users_own_may_be_in_force_inside_and_outside(mode, inside):
    block = Attention()

    def run(x):
        with mode():
            return block(x)

    with nullcontext() if inside else mode():
        same_bits(run if inside else block, torch.randn(2, 24, 32), kept=2)


def test_a_context_inside_another_sees_the_same_calls():
    block, x = Attention(), torch.randn(2, 24, 32)
    with keeping() as outer, keeping() as inner, torch.no_grad():
        block(x)
    with keeping() as second, replaying(inner):
        block(x)

    for outputs in (outer, inner, second):
        equal(rerun(block, outputs, x), plain(block, x))


def test_other_operations_are_not_seen_by_a_dispatch_mode():
    seen = []

    def block(x):
        seen.append(dispatch_modes())
        return attend(x)

    first_run(block, torch.randn(2, 4, 24, 8))

    assert seen == [0]


# Where the tensors are


def test_bytes_are_those_of_the_results_and_their_log_sum_exps():
    outputs = first_run(Attention(), torch.randn(2, 24, 32))

    assert outputs.nbytes == 2 * 4 * (2 * 24 * 32 + 2 * 4 * 24)
    assert outputs.nbytes == sum(t.untyped_storage().nbytes() for t in outputs.tensors)


def test_the_graph_of_the_first_run_is_let_go():
    x = leaf(2, 4, 24, 8)
    hidden = x * 2
    gone = weakref.ref(hidden)
    with keeping() as outputs:
        attend(hidden)
    del hidden

    assert gone() is None
    assert len(outputs.tensors) == 2


def test_tensors_can_be_stored_elsewhere_in_between():
    block, x = Attention(), torch.randn(2, 24, 32)
    outputs = first_run(block, x)

    taken = outputs.take()
    copies, gone = [t.clone() for t in taken], [weakref.ref(t) for t in taken]
    del taken
    assert all(ref() is None for ref in gone)
    assert outputs.tensors == []
    outputs.put(copies)

    with KernelCalls() as kernels:
        equal(rerun(block, outputs, x), plain(block, x))
    assert len(kernels.seen) == 2  # those of the plain run


def test_tensors_that_were_changed_in_place_are_not_taken():
    with keeping() as outputs, torch.no_grad():
        attend(torch.randn(2, 4, 24, 8)).mul_(2)
        attend(torch.randn(2, 4, 24, 8))
    right = outputs.tensors

    taken = outputs.take()
    assert [id(t) for t in taken] == [id(t) for t in right]
    assert len(taken) == 2
    outputs.put(taken)
    assert [id(t) for t in outputs.tensors] == [id(t) for t in right]


# Refusals


def test_a_rerun_that_calls_attention_more_often_is_refused():
    x = torch.randn(2, 4, 24, 8)
    outputs = first_run(attend, x)

    with pytest.raises(ReplayError, match=r"Call 2 .*first run it was: none.*rerun it is: aten"):
        rerun(lambda x: attend(attend(x)), outputs, x)


def test_a_rerun_that_calls_attention_less_often_is_refused():
    x = torch.randn(2, 4, 24, 8)
    outputs = first_run(attend, x)

    with pytest.raises(ReplayError, match=r"Call 1 .*first run it was: aten.*rerun it is: none"):
        rerun(torch.sin, outputs, x)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (lambda x: attend(x[:1]), r"query=float32\[2, 4, 24, 8\].*query=float32\[1, 4, 24, 8\]"),
        (lambda x: attend(x.double()), r"query=float32.*query=float64"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "is_causal=True"),
    ],
    ids=["shape", "dtype", "option"],
)
def test_a_rerun_that_calls_attention_otherwise_is_refused(again, words):
    x = torch.randn(2, 4, 24, 8)
    outputs = first_run(attend, x)

    with pytest.raises(ReplayError, match=words):
        rerun(again, outputs, x)


def test_an_error_of_the_block_itself_is_not_hidden():
    outputs = first_run(attend, torch.randn(2, 4, 24, 8))

    with pytest.raises(ZeroDivisionError), replaying(outputs):
        _ = 1 / 0


@pytest.mark.parametrize("changed", range(3), ids=["q", "k", "v"])
def test_a_rerun_that_gives_attention_other_values_is_refused(changed):
    given = [torch.randn(1, 2, 8, 4) for _ in range(3)]
    with keeping(Verifier("exact")) as outputs:
        F.scaled_dot_product_attention(*given)
    given[changed] = given[changed] + 1e-3

    with pytest.raises(ReplayError, match="q, k and v"), replaying(outputs):
        F.scaled_dot_product_attention(*given)
