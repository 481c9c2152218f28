"""Wrappers of other libraries around modules: those that a chain cannot be exact with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainograd.errors import ChainError

# Note [Wrappers]
# The plain loop sends M gradients to each parameter; a chain adds them up and sends the sum, once.
# A chain also runs steps again. So a wrapper goes wrong if it counts the calls of its hooks, or if
# its hooks move weights. To find wrappers nothing is imported: classes are told by their names.

_FSDP = (
    "The step calls a FullyShardedDataParallel module (FSDP1). Its hooks gather and free weights "
    "on every forward and backward pass of the plain loop. A chain runs steps again and goes back "
    "through them one by one, so the weights would be missing. Use FSDP2, "
    "`torch.distributed.fsdp.fully_shard(module)`, or put the wrapper around the chain: "
    "FullyShardedDataParallel(sampler), where the sampler's `forward` calls the chain and no "
    "module inside is wrapped."
)
_ZERO = (
    "The step uses {what} of DeepSpeed ZeRO stage 3, whose hooks gather and free weights on every "
    "forward and backward pass of the plain loop. A chain runs steps again and goes back through "
    "them one by one, so the weights would be missing. Use ZeRO stage 1 or 2, or "
    "`torch.distributed.fsdp.fully_shard(module)`."
)


_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}


def is_wrapper(cls: type) -> bool:
    """Return whether `refuse_wrapper` refuses some instances of a class."""
    return not _WRAPPERS.isdisjoint(base.__name__ for base in cls.__mro__)


def refuse_wrapper(thing: Any) -> None:
    """Refuse a wrapper that would make gradients wrong.

    Raises:
        ChainError: If the thing is such a wrapper.
    """
    names = {cls.__name__ for cls in type(thing).__mro__}
    # With `static_graph`, DDP counts the calls of a parameter's hook, M in the plain loop, and
    # averages at the last one. A chain calls each hook once, so DDP would never average.
    if "DistributedDataParallel" in names and getattr(thing, "static_graph", False):
        raise ChainError(
            "The step calls a DistributedDataParallel module with `static_graph=True`, which would "
            "not average the chain's gradients over the processes. Leave `static_graph` out, or "
            "put the wrapper around the chain: DistributedDataParallel(sampler), where the "
            "sampler's `forward` calls the chain."
        )
    if "FullyShardedDataParallel" in names:
        raise ChainError(_FSDP)
    if "DeepSpeedEngine" in names and _stage(thing) >= 3:
        raise ChainError(_ZERO.format(what="an engine"))


def _stage(engine: Any) -> int:
    return getattr(engine, "zero_optimization_stage", lambda: 3)()


def refuse_partitioned(tensor: Tensor) -> None:
    """Refuse a parameter that DeepSpeed gathers only while its module runs.

    Raises:
        ChainError: If the tensor is such a parameter.
    """
    if hasattr(tensor, "ds_id"):
        shape = tuple(
            getattr(tensor, "ds_shape", tensor.shape)
        )  # its own shape is empty between runs
        raise ChainError(_ZERO.format(what=f"a parameter of shape {shape}"))


def pass_counter(cls: type) -> str | None:
    """Return the full name of the class if it counts forward passes per backward pass, or None."""
    # Opacus keeps the input of each forward pass, and takes one at each backward pass.
    for base in cls.__mro__:
        if base.__name__ == "GradSampleModule":
            return f"{base.__module__}.{base.__qualname__}"
    return None


def refuse_cuda_graphs() -> None:
    """Refuse steps that are replayed as CUDA graphs.

    Raises:
        ChainError: Always.
    """
    raise ChainError(
        "The step calls code compiled with `mode='reduce-overhead'` or 'max-autotune'. On an "
        "accelerator, the next run of the step overwrites the memory of its results, but the chain "
        "needs the states of all steps. Compile with `mode='default'` or "
        "'max-autotune-no-cudagraphs'."
    )
