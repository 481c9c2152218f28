"""Modules whose kernels depend on whether gradients are wanted, or that hide their weights."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from torch import nn

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import Way

CAPTURED = (
    "The chain first sums all steps' gradients of a tensor computed before the sampler; the loop"
    " sends each one on separately."
)


@case("pytorch#128209")
def attention_in_eval(run: Way) -> Values:
    """`nn.MultiheadAttention` in eval mode."""
    net, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), leaf(3, 6, 8)
    y = run(lambda x, i: x + net(x, x, x, need_weights=False)[0], M, x)
    return gradients(square(y), net=net, x=x)


@case()
def attention_in_training(run: Way) -> Values:
    """`nn.MultiheadAttention` in training mode with dropout, and its weights."""
    net, x = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True), leaf(3, 6, 8)

    def step(x, i):
        y, weights = net(x, x, x)
        return torch.tanh(x + y + weights.mean())

    return gradients(square(run(step, M, x)), net=net, x=x)


@case("pytorch#106630")
def an_encoder_layer_in_eval(run: Way) -> Values:
    """`nn.TransformerEncoderLayer` in eval mode."""
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = leaf(2, 5, 8)
    return gradients(square(run(lambda x, i: x + net(x), M, x)), net=net, x=x)


@case()
def a_frozen_encoder_layer(run: Way) -> Values:
    """The same with frozen weights and a trained prompt."""
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    x, prompt = torch.randn(2, 5, 8), leaf(8)
    return gradients(square(run(lambda x, i: x + net(x + prompt), M, x)), prompt=prompt)


@case("pytorch#132700")
def lstm(run: Way) -> Values:
    """`nn.LSTM` over the whole sequence in every step."""
    net, x = nn.LSTM(8, 8, batch_first=True), leaf(2, 5, 8)
    return gradients(square(run(lambda x, i: x + net(x)[0], M, x)), net=net, x=x)


@case()
def gru_in_eval(run: Way) -> Values:
    """A bidirectional `nn.GRU` of two layers in eval mode."""
    net = nn.GRU(8, 4, num_layers=2, bidirectional=True, batch_first=True).eval()
    x = leaf(2, 5, 8)
    return gradients(square(run(lambda x, i: x + net(x)[0], M, x)), net=net, x=x)


@case("pytorch PR 188302")
def a_learned_bias_in_attention(run: Way) -> Values:
    """`F.scaled_dot_product_attention` with a learned relative position bias."""
    qkv, bias, x = nn.Linear(8, 24), leaf(2, 5, 5), leaf(2, 5, 8)

    def step(x, i):
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + y.transpose(1, 2).flatten(-2)

    return gradients(square(run(step, M, x)), qkv=qkv, bias=bias, x=x)


def _compiled(run: Way, backend: str) -> Values:
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8))
    x, compiled = leaf(4, 8), torch.compile(net, backend=backend)
    return gradients(square(run(lambda x, i: x + compiled(x), M, x)), net=net, x=x)


@case("pytorch#100977")
def compiled_by_eager(run: Way) -> Values:
    """`torch.compile(net, backend="eager")`."""
    return _compiled(run, "eager")


@case("pytorch#105653")
def compiled_by_aot_eager(run: Way) -> Values:
    """`torch.compile(net, backend="aot_eager")`."""
    return _compiled(run, "aot_eager")


@case(slow=True)
def compiled_by_inductor(run: Way) -> Values:
    """`torch.compile(net)`: fused kernels of a C++ compiler."""
    return _compiled(run, "inductor")


@case()
def a_compiled_step(run: Way) -> Values:
    """The whole step is compiled, its index included."""
    net, x = nn.Linear(8, 8), leaf(4, 8)
    step = torch.compile(lambda x, i: torch.tanh(net(x) + i / 10), backend="aot_eager")
    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def compiled_with_a_hooked_weight(run: Way) -> Values:
    """A network compiled with `fullgraph`, one of whose weights has a hook, in 20 steps."""
    net, x = nn.Linear(8, 8), leaf(4, 8)
    net.weight.register_hook(lambda g: g.clamp(-0.5, 0.5))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    return gradients(square(run(lambda x, i: torch.tanh(compiled(x)), 20, x)), net=net, x=x)


def _layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def _scripted(run: Way, net: torch.jit.ScriptModule | torch.nn.Module) -> Values:
    head, x = nn.Linear(8, 1), torch.randn(4, 8)
    # Else the loop's own last bits depend on which runs TorchScript has seen before.
    with torch.jit.optimized_execution(False):
        return gradients(square(head(run(lambda x, i: net(x), M, x))), net=net, head=head)


@case("pytorch#83349")
def torchscript_by_tracing(run: Way) -> Values:
    """`torch.jit.trace`; the state needs no gradient."""
    return _scripted(run, torch.jit.trace(_layers(), torch.randn(4, 8)))


@case("pytorch#83349")
def torchscript_by_script(run: Way) -> Values:
    """`torch.jit.script`."""
    return _scripted(run, torch.jit.script(_layers()))


@case("pytorch#83349")
def torchscript_from_a_file(run: Way) -> Values:
    """`torch.jit.load`: weights live in C++."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(_layers()), file)
    file.seek(0)
    return _scripted(run, torch.jit.load(file))


@case()
def spectral_norm_in_training(run: Way) -> Values:
    """`spectral_norm` in training mode iterates in every run."""
    net, x = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), leaf(4, 8)
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def weight_norm(run: Way) -> Values:
    """`weight_norm`: the weight is computed from two parameters in every run."""
    net, x = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), leaf(4, 8)
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def an_embedding_with_sparse_gradients(run: Way) -> Values:
    """`nn.Embedding(sparse=True)`, indexed by the step's index."""
    table, x = nn.Embedding(8, 4, sparse=True), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(x + table(torch.tensor([i, i, 0]))), M, x)
    return gradients(square(y), table=table, x=x)


@case("pytorch#155171")
def checkpoints_inside_of_a_step(run: Way) -> Values:
    """The network checkpoints its own blocks, with dropout in them."""
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2)) for _ in range(2))
    x = leaf(4, 8)

    def step(x, i):
        for block in blocks:
            x = x + torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
        return torch.tanh(x)

    return gradients(square(run(step, M, x)), blocks=blocks, x=x)


@case()
def a_custom_function_in_a_step(run: Way) -> Values:
    """A `torch.autograd.Function` whose derivative uses a plain attribute of its context."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x * factor

        @staticmethod
        def backward(ctx, g):
            return g * ctx.factor, None

    y = run(lambda x, i: torch.tanh(Scaled.apply(net(x), 1 + i / 10)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def blocks_compiled_one_by_one(run: Way) -> Values:
    """Regional compilation: each block of the network is compiled separately."""
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.SiLU()) for _ in range(3)))
    for block in blocks:
        block.compile(backend="eager")
    x = leaf(4, 8)
    return gradients(square(run(lambda x, i: x + blocks(x), M, x)), blocks=blocks, x=x)


@case(slow=True)
def compiled_for_shapes_that_change(run: Way) -> Values:
    """An attention compiled with `dynamic=True`, over a growing cache in the state."""
    qkv, x = nn.Linear(8, 24), leaf(2, 1, 8)

    def attended(x, cache):
        q, k, v = qkv(torch.cat([cache, x], 1)).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v

    compiled = torch.compile(attended, backend="aot_eager", dynamic=True)

    def step(state, i):
        x, cache = state
        return torch.tanh(compiled(x, cache)[:, -1:]), torch.cat([cache, x], 1)

    y = run(step, M, (x, torch.zeros(2, 1, 8)))[0]
    return gradients(square(y), qkv=qkv, x=x)


@case(expected="raises", why="TorchScript receives the tensor itself, not its stand-in.")
def a_computed_tensor_in_a_scripted_function(run: Way) -> Values:
    """A `torch.jit.script` function takes a tensor that was computed before the sampler."""
    A, x = leaf(4, 4), leaf(3, 4)
    B = torch.sin(A)

    @torch.jit.script
    def product(x: torch.Tensor, B: torch.Tensor):
        return torch.tanh(x @ B)

    return gradients(square(run(lambda x, i: product(x, B), M, x)), A=A, x=x)


@case(expected="right*", why=CAPTURED)
def a_parametrization_that_is_cached(run: Way) -> Values:
    """`parametrize.cached()` around the sampler: the weight is computed once."""
    net, x = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), leaf(4, 8)
    with nn.utils.parametrize.cached():
        y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def layers_of_many_kinds(run: Way) -> Values:
    """Group norm, transposed convolution, pooling, upsampling, PReLU, dropout of channels."""
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.PReLU(), nn.AvgPool2d(2),
        nn.Dropout2d(0.2), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.InstanceNorm2d(4, affine=True),
    )  # fmt: skip
    x = leaf(2, 4, 4, 4)
    return gradients(square(run(lambda x, i: x + net(x), M, x)), net=net, x=x)


@case()
def modules_in_a_plain_list(run: Way) -> Values:
    """Layers in a plain list and dictionary, which torch does not search."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.named = [nn.Linear(4, 4)], {"last": [nn.Linear(4, 4)]}

        def forward(self, x, i):
            return torch.tanh(self.named["last"][0](torch.sin(self.layers[0](x))))

    net, x = Net(), torch.randn(3, 4)
    loss = square(run(net, M, x))
    return gradients(loss, first=net.layers[0], last=net.named["last"][0])


@case(expected="raises", why="The weights do not exist yet when the chain searches for them.")
def a_lazy_layer(run: Way) -> Values:
    """`nn.LazyLinear`, which makes its weights in step 0."""
    net, x = nn.LazyLinear(4), leaf(3, 4)
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
