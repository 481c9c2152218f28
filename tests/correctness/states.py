"""What a state may be: pytrees, caches, histories, statistics, integers, odd tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import Way


@case()
def a_growing_cache_of_keys_and_values(run: Way) -> Values:
    """An autoregressive step appends keys and values to a cache in the state."""
    qkv, out, x = nn.Linear(8, 24), nn.Linear(8, 8), leaf(2, 1, 8)

    def step(state, i):
        x, keys, values = state
        q, k, v = qkv(x).chunk(3, -1)
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        return x + out(F.scaled_dot_product_attention(q, keys, values)), keys, values

    y = run(step, M, (x, torch.zeros(2, 0, 8), torch.zeros(2, 0, 8)))[0]
    return gradients(square(y), qkv=qkv, out=out, x=x)


@case()
def a_cache_with_room_for_all_steps(run: Way) -> Values:
    """The same with `index_copy` into a cache of fixed size, and an integer position."""
    kv, x = nn.Linear(8, 16), leaf(2, 8)

    def step(state, i):
        x, keys, values, position = state
        k, v = kv(x).chunk(2, -1)
        keys = keys.index_copy(1, position, k[:, None])
        values = values.index_copy(1, position, v[:, None])
        weights = (keys @ x[..., None]).softmax(1)
        return torch.tanh((weights * values).sum(1)), keys, values, position + 1

    empty = torch.zeros(2, M, 8)
    y = run(step, M, (x, empty, empty.clone(), torch.zeros(1, dtype=torch.long)))[0]
    return gradients(square(y), kv=kv, x=x)


@case()
def a_multistep_history(run: Way) -> Values:
    """Adams-Bashforth: the last prediction is part of the state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        x, before = state
        now = torch.tanh(net(x))
        return x + (now if i == 0 else 1.5 * now - 0.5 * before), now

    y = run(step, M, (x, torch.zeros(3, 4)))[0]
    return gradients(square(y), net=net, x=x)


@case()
def batch_norm_in_training(run: Way) -> Values:
    """`nn.BatchNorm1d` in training mode: gradients, and its statistics after `backward()`."""
    net, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), leaf(6, 4)
    values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)
    return {**values, "mean": net[1].running_mean.clone(), "seen": net[1].num_batches_tracked}


@case()
def batch_norm_in_eval(run: Way) -> Values:
    """`nn.BatchNorm1d` in eval mode."""
    net, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), leaf(6, 4)
    return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


@case("MAML-Pytorch#44, pytorch#8930")
def statistics_in_the_state(run: Way) -> Values:
    """The state carries the statistics of a batch norm, so the step is pure."""
    net, x = nn.Linear(8, 8), leaf(6, 8)

    def step(state, i):
        x, mean, var = state
        mean, var = mean.clone(), var.clone()
        return torch.tanh(F.batch_norm(net(x), mean, var, training=True)), mean, var

    y, mean, var = run(step, M, (x, torch.zeros(8), torch.ones(8)))
    return {**gradients(square(y), net=net, x=x), "mean": mean.detach(), "var": var.detach()}


@case()
def a_float_mask_in_the_state(run: Way) -> Values:
    """A constant attention mask is a leaf of the state and needs no gradient."""
    qkv, x, mask = nn.Linear(8, 24), leaf(2, 4, 8), torch.randn(4, 4)

    def step(state, i):
        x, mask = state
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + y.transpose(1, 2).flatten(-2), mask

    return gradients(square(run(step, M, (x, mask))[0]), qkv=qkv, x=x)


@case()
def a_constant_without_a_derivative(run: Way) -> Values:
    """`torch.special.gammainc(a, x)`, whose `a` is a constant in the state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        x, a = state
        return torch.special.gammainc(a, F.softplus(net(x)) + 0.1), a

    return gradients(square(run(step, M, (x, torch.ones(3, 4)))[0]), net=net, x=x)


@case()
def a_constant_read_as_a_number(run: Way) -> Values:
    """The step reads a float leaf of the state with `numpy()`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        x, sigma = state
        return torch.tanh(net(x) * float(sigma.numpy())), sigma * 0.9

    return gradients(square(run(step, M, (x, torch.tensor(1.5)))[0]), net=net, x=x)


@case()
def integer_leaves(run: Way) -> Values:
    """Tokens, a position and a flag in the state; argmax chooses the tokens."""
    table, head, x = nn.Embedding(6, 4), nn.Linear(4, 6), leaf(2, 4)

    def step(state, i):
        x = torch.tanh(state["x"] + table(state["token"]))
        scores = head(x)
        done = state["done"] | (state["position"] > 3)
        return {"x": x + scores.sum(-1, keepdim=True), "token": scores.argmax(-1),
                "position": state["position"] + 1, "done": done}  # fmt: skip

    start = {"x": x, "token": torch.tensor([1, 2]), "position": torch.tensor(0),
             "done": torch.tensor([False, False])}  # fmt: skip
    return gradients(square(run(step, M, start)["x"]), table=table, head=head, x=x)


FOLDER = "Always on the device: a folder stores plain tensors only, and raises for others."


class Pair(NamedTuple):
    """A state with names."""

    position: Tensor
    velocity: Tensor


@case()
def named_tuples_and_dictionaries(run: Way) -> Values:
    """A dictionary of named tuples and lists."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        (x, v), (h,) = state["pair"], state["list"]
        v = 0.9 * v + torch.tanh(net(x + h))
        return {"pair": Pair(x + 0.1 * v, v), "list": [torch.sin(h + v)]}

    start = {"pair": Pair(x, torch.zeros(3, 4)), "list": [torch.zeros(3, 4)]}
    return gradients(square(run(step, M, start)["pair"].position), net=net, x=x)


@dataclass
class Plain:
    """A state that pytrees do not know."""

    x: Tensor


@dataclass
class Registered:
    """A state that pytrees know."""

    x: Tensor
    v: Tensor


register_pytree_node(
    Registered, lambda s: ([s.x, s.v], None), lambda leaves, _: Registered(*leaves)
)


@case(expected="raises", why="A dataclass hides its tensors until it is registered as a pytree.")
def an_unregistered_dataclass(run: Way) -> Values:
    """The state is a dataclass that is not registered with torch's pytrees."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda s, i: Plain(torch.tanh(net(s.x))), M, Plain(x)).x
    return gradients(square(y), net=net, x=x)


@case()
def a_registered_dataclass(run: Way) -> Values:
    """The state is a dataclass that was registered as a pytree."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(s, i):
        v = 0.9 * s.v + torch.tanh(net(s.x))
        return Registered(s.x + 0.1 * v, v)

    y = run(step, M, Registered(x, torch.zeros(3, 4))).x
    return gradients(square(y), net=net, x=x)


@case("diffusers: x_T is noise")
def a_state_that_needs_no_gradient(run: Way) -> Values:
    """The weights need gradients, and the initial noise does not."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)
    head = nn.Linear(4, 1)
    y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(head(y)), net=net, head=head)


@case()
def a_state_that_is_handed_on(run: Way) -> Values:
    """Odd steps return the very tensor that they received."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: x if i % 2 else torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def views_of_one_tensor(run: Way) -> Values:
    """Two leaves of the state are views of one tensor."""
    net, x = nn.Linear(4, 8), leaf(3, 4)

    def step(state, i):
        a, b = net(state[0] + state[1]).chunk(2, -1)
        return torch.tanh(a), torch.tanh(b)

    y = run(step, M, (x, x.detach().sin()))
    return gradients(square(y[0]) + y[1].sum(), net=net, x=x)


@case()
def complex_and_double_leaves(run: Way) -> Values:
    """A complex leaf and a double one."""
    w, x = (leaf(n, 4, dtype=torch.complex64) for n in (4, 3))
    z = torch.randn(3, 4, dtype=torch.float64)

    def step(state, i):
        x, z = state
        return torch.tanh(x @ w), torch.sin(z + x.real.double())

    x1, z1 = run(step, M, (x, z))
    return gradients(x1.abs().sum() + square(z1), w=w, x=x)


@case()
def bfloat16_throughout(run: Way) -> Values:
    """Weights and states in bfloat16."""
    net, x = nn.Linear(8, 8).bfloat16(), leaf(4, 8, dtype=torch.bfloat16)
    return gradients(square(run(lambda x, i: x + torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def an_empty_batch(run: Way) -> Values:
    """No samples: gradients are zeros."""
    net, x = nn.Linear(4, 4), leaf(0, 4)
    return gradients(run(lambda x, i: torch.tanh(net(x)), M, x).sum(), net=net, x=x)


@case(why=FOLDER)
def a_sparse_leaf(run: Way) -> Values:
    """A constant sparse matrix (COO) in the state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        x, graph = state
        return torch.tanh(net(torch.sparse.mm(graph, x))), graph

    graph = (torch.rand(3, 3) > 0.4).float().to_sparse()
    return gradients(square(run(step, M, (x, graph), store="device")[0]), net=net, x=x)


@case(why=FOLDER)
def a_nested_leaf(run: Way) -> Values:
    """The state is a jagged nested tensor."""
    net = nn.Linear(4, 4)
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    y = run(lambda x, i: torch.tanh(net(x)), M, x, store="device")
    return gradients(square(y.values()), net=net)


@case()
def a_float8_leaf(run: Way) -> Values:
    """A table in float8 is carried in the state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        x, table = state
        return torch.tanh(net(x) * table.float()), table

    table = torch.randn(3, 4).to(torch.float8_e4m3fn)
    return gradients(square(run(step, M, (x, table))[0]), net=net, x=x)


@case()
def one_tensor_twice(run: Way) -> Values:
    """A step returns one tensor as two leaves."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        y = torch.tanh(net(state[0] + 0.5 * state[1]))
        return y, y

    y, z = run(step, M, (x, torch.zeros(3, 4)))
    return gradients(square(y) + z.sum(), net=net, x=x)


@case()
def shapes_that_change(run: Way) -> Values:
    """A cascade: every step doubles the image's size."""
    net, x = nn.Conv2d(2, 2, 3, padding=1), leaf(1, 2, 2, 2)
    y = run(lambda x, i: torch.tanh(net(F.interpolate(x, scale_factor=2.0))), 3, x)
    return gradients(square(y), net=net, x=x)


@case()
def dtypes_that_change(run: Way) -> Values:
    """The state alternates between float32, bfloat16 and float64."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    y = run(lambda x, i: torch.tanh(net(x.float())).to(dtypes[i % 3]), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def numbers_texts_and_none(run: Way) -> Values:
    """Numbers, text and None as leaves of the state."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(state, i):
        h = torch.tanh(net(state["x"]) * state["scale"])
        before = state["before"]
        h = h if before is None else h + 0.1 * before
        return {"x": h, "scale": state["scale"] * 0.9, "before": h, "mode": state["mode"]}

    start = {"x": x, "scale": 1.5, "before": None, "mode": "ddim"}
    return gradients(square(run(step, M, start)["x"]), net=net, x=x)


@case()
def expanded_states(run: Way) -> Values:
    """A step returns an expanded tensor, whose entries share memory."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    y = run(lambda x, i: torch.tanh(net(x)).mean(0, keepdim=True).expand(3, 4), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def a_view_of_the_input(run: Way) -> Values:
    """Some steps return a view of their input."""
    net, x = nn.Linear(4, 4), leaf(4, 4)
    y = run(lambda x, i: x.t() if i % 2 else torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)
