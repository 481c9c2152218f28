"""What others wrap around modules and functions: what of it a chain cannot be exact with."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chainograd.errors import ChainError

# Note [Wrappers]
# A chain sums gradients up inside, and hands each tensor its gradient once, where the plain loop
# does it M times. It also runs steps again. What counts the calls of its hooks, or moves weights
# to and fro by them, is then wrong. Nothing is imported here to tell: names and attributes do.

_FSDP = (
    "The step calls a FullyShardedDataParallel module (FSDP1), which gathers and frees its weights "
    "by hooks on every forward and backward pass of the plain loop. A chain runs steps again and "
    "goes back through them one by one, so the weights would not be there. Use FSDP2, "
    "`torch.distributed.fsdp.fully_shard(module)`, or wrap the module around the chain: "
    "FullyShardedDataParallel(sampler), where the sampler's `forward` calls the chain and nothing "
    "inside of it is wrapped."
)
_ZERO = (
    "The step uses {what} of DeepSpeed ZeRO stage 3, which gathers and frees weights by hooks on "
    "every forward and backward pass of the plain loop. A chain runs steps again and goes back "
    "through them one by one, so the weights would not be there. Use ZeRO stage 1 or 2, or "
    "`torch.distributed.fsdp.fully_shard(module)`."
)


_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}


def is_wrapper(cls: type) -> bool:
    """Return whether `refuse_wrapper` has something to say of some of a class's instances."""
    return not _WRAPPERS.isdisjoint(base.__name__ for base in cls.__mro__)


def refuse_wrapper(thing: Any) -> None:
    """See that something that a step reaches is no wrapper that would make gradients wrong.

    Raises:
        ChainError: If it is one.
    """
    names = {cls.__name__ for cls in type(thing).__mro__}
    # DDP then counts a parameter's hook calls, M of them in the plain loop, and reduces at the
    # last one. A chain sums up inside and calls each hook once: nothing would be reduced.
    if "DistributedDataParallel" in names and getattr(thing, "static_graph", False):
        raise ChainError(
            "The step calls a DistributedDataParallel module with `static_graph=True`, which would "
            "not average the chain's gradients over the processes. Leave `static_graph` out, or "
            "wrap the module around the chain: DistributedDataParallel(sampler), where the "
            "sampler's `forward` calls the chain."
        )
    if "FullyShardedDataParallel" in names:
        raise ChainError(_FSDP)
    if "DeepSpeedEngine" in names and _stage(thing) >= 3:
        raise ChainError(_ZERO.format(what="an engine"))


def _stage(engine: Any) -> int:
    return getattr(engine, "zero_optimization_stage", lambda: 3)()


def refuse_partitioned(tensor: Tensor) -> None:
    """See that a parameter is not one that DeepSpeed gathers only while its module runs.

    Raises:
        ChainError: If it is one.
    """
    if hasattr(tensor, "ds_id"):
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # its own is empty meanwhile
        raise ChainError(_ZERO.format(what=f"a parameter of shape {shape}"))


def pass_counter(cls: type) -> str | None:
    """Return the full name of a class that counts forward passes per backward pass, or None."""
    # Opacus keeps one input a forward pass, and forms samples' gradients at each backward pass.
    for base in cls.__mro__:
        if base.__name__ == "GradSampleModule":
            return f"{base.__module__}.{base.__qualname__}"
    return None


def is_compiled(function: Any) -> bool:
    """Return whether torch.compile made a function.

    A compiled module has one among its attributes: its ``forward``, or what its calls go to.
    """
    # What `torch.compiler.disable` makes has the first of these too.
    marks = vars(function)
    return "_torchdynamo_orig_callable" in marks and "_torchdynamo_disable" not in marks


def uses_cuda_graphs(function: Any) -> bool:
    """Return whether what torch.compile made of a function is replayed as a CUDA graph.

    The modes ``"reduce-overhead"`` and ``"max-autotune"`` are.
    """
    tell = getattr(function, "get_compiler_config", None)
    config = tell() if callable(tell) else None
    return isinstance(config, dict) and bool(config.get("triton.cudagraphs"))


def refuse_cuda_graphs() -> None:
    """Refuse steps that are replayed as CUDA graphs.

    Raises:
        ChainError: Always.
    """
    raise ChainError(
        "The step calls what torch.compile made with `mode='reduce-overhead'` or 'max-autotune'. "
        "On an accelerator its results lie in memory that the next run of the step writes over, "
        "but the chain needs the states of all steps. Compile with `mode='default'` or "
        "'max-autotune-no-cudagraphs'."
    )
