"""Settings in force while the sampler runs, and no longer while `backward()` runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from tests.correctness.case import M, Values, case, gradients, grads_of, leaf, square
from tests.correctness.ways import Way


@case("pytorch#124788, PR 172802")
def a_kernel_of_attention(run: Way) -> Values:
    """`sdpa_kernel(SDPBackend.MATH)` around the sampler's call."""
    qkv, x = nn.Linear(8, 24), leaf(2, 5, 8)

    def step(x, i):
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    with sdpa_kernel(SDPBackend.MATH):
        y = run(step, M, x)
    return gradients(square(y), qkv=qkv, x=x)


@case("NeMo Automodel#2761")
def a_default_dtype(run: Way) -> Values:
    """The default dtype is float64 around the sampler's call, and its steps make tensors."""
    net, x = nn.Linear(4, 4).double(), leaf(3, 4, dtype=torch.float64)

    def step(x, i):
        return torch.tanh(net(x) * torch.linspace(0.1, 0.7, 4))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        y = run(step, M, x)
    finally:
        torch.set_default_dtype(before)
    return gradients(square(y), net=net, x=x)


@case()
def a_default_device(run: Way) -> Values:
    """The sampler runs under `with torch.device("cpu")`, and `backward()` under "meta"."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with torch.device("cpu"):
        y = run(lambda x, i: torch.tanh(net(x) + torch.ones(4) * i), M, x)
    loss = square(y)
    with torch.device("meta"):
        return gradients(loss, net=net, x=x)


@case()
def mkldnn_off(run: Way) -> Values:
    """`torch.backends.mkldnn.flags(enabled=False)` around the sampler's call."""
    net, x = nn.Conv2d(16, 16, 3, padding=1), leaf(2, 16, 12, 12)
    with torch.backends.mkldnn.flags(enabled=False):
        y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def training_mode_that_ends(run: Way) -> Values:
    """`net.eval()` between the sampler and `backward()`; the sampler had dropout."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4)), leaf(3, 4)
    y = run(lambda x, i: x + torch.tanh(net(x)), M, x)
    net.eval()
    return gradients(square(y), net=net, x=x)


@case(expected="raises", why="The step has changed when it runs again.")
def an_attribute_that_changes(run: Way) -> Values:
    """The guidance scale, an attribute that the step reads, changes before `backward()`."""
    net, x, settings = nn.Linear(4, 4), leaf(3, 4), {"scale": 1.5}
    y = run(lambda x, i: torch.tanh(settings["scale"] * net(x)), M, x)
    settings["scale"] = 7.5
    return gradients(square(y), net=net, x=x)


@case()
def inference_tensors(run: Way) -> Values:
    """A condition is made under `torch.inference_mode`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with torch.inference_mode():
        condition = torch.randn(4)
    y = run(lambda x, i: torch.tanh(net(x) + condition), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def saved_tensors_on_the_host(run: Way) -> Values:
    """`torch.autograd.graph.save_on_cpu` around the sampler's call."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with torch.autograd.graph.save_on_cpu():
        y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


@case()
def anomaly_mode(run: Way) -> Values:
    """`torch.autograd.detect_anomaly` around everything."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with torch.autograd.detect_anomaly():
        return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


class Rounded(TorchFunctionMode):
    """Rounds what linear layers return, as simulated quantization does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Round."""
        y = func(*args, **(kwargs or {}))
        return y + ((8 * y).round() / 8 - y).detach() if func is F.linear else y


@case(expected="raises", why="The caller's mode is not active when steps run again.")
def a_function_mode(run: Way) -> Values:
    """A `TorchFunctionMode` that rounds is active only around the sampler's call."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with Rounded():
        y = run(lambda x, i: torch.tanh(net(x)), M, x)
    return gradients(square(y), net=net, x=x)


@case(expected="raises", why="Torch disables modes during `backward()`.")
def a_function_mode_around_everything(run: Way) -> Values:
    """The same, also around `backward()`."""
    net, x = nn.Linear(4, 4), leaf(3, 4)
    with Rounded():
        return gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), net=net, x=x)


@case()
def training_mode_by_the_index(run: Way) -> Values:
    """A step switches dropout on or off by its index; the last step's setting remains."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4)), leaf(3, 4)

    def step(x, i):
        net.train(i >= 2)
        return x + torch.tanh(net(x))

    values = gradients(square(run(step, M, x)), net=net, x=x)
    return {**values, "training": net.training}


@case()
def backward_in_another_thread(run: Way) -> Values:
    """The sampler, with dropout and autocast, and `backward()` run in different threads."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 4)), leaf(3, 4)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = square(run(lambda x, i: x + torch.tanh(net(x)).float(), M, x))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(loss.backward).result()
    return {"loss": loss.detach(), **grads_of(net=net, x=x)}


@case()
def saved_tensors_on_the_host_in_a_step(run: Way) -> Values:
    """A step opens `save_on_cpu` around its network."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        with torch.autograd.graph.save_on_cpu():
            return torch.tanh(net(x))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def saved_tensors_in_few_bits(run: Way) -> Values:
    """A step's own hooks save its tensors in bfloat16; the loop's gradient is rounded too."""
    net, x = nn.Linear(4, 4), leaf(3, 4)

    def step(x, i):
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.bfloat16, torch.Tensor.float):
            return torch.sin(net(x))

    return gradients(square(run(step, M, x)), net=net, x=x)


@case()
def a_step_that_asks_for_gradients(run: Way) -> Values:
    """A step's result depends on `is_grad_enabled()` and on `x.requires_grad`."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)

    def step(x, i):
        scale = 1 + 0.1 * torch.is_grad_enabled() + 0.2 * x.requires_grad
        return torch.tanh(scale * net(x))

    return gradients(square(run(step, M, x)), net=net)
