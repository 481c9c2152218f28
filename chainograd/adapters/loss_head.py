"""Loss heads in slices: decoders and rewards whose graph is never that of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Generator, Tensor

from chainograd.blocks.choice import Blocks
from chainograd.chain import CheckpointedChain, Frozen
from chainograd.replay.verify import Verify


def in_slices(
    function: Callable[..., Any],
    *,
    micro_batch: int | None = 1,
    blocks: Blocks = None,
    params: Iterable[Tensor] = (),
    generators: Iterable[Generator] = (),
    frozen: Frozen = "auto",
    verify: Verify = "exact",
) -> CheckpointedChain:
    """Return a function that decodes and scores a batch in the memory of one slice.

    It has the values and gradients of ``function(z, *args, **kwargs)``, and it is a chain of one
    step. A call computes slice after slice and keeps no graph. When the cotangent of the result is
    there, each slice runs again with its graph, which is freed before the next slice runs. So the
    loss may see the whole batch.

    With ``micro_batch=n`` the graph of n samples is held, with ``blocks`` that of one call of one
    block: 2F + B, where F is the time of a forward pass and B of a backward pass. With both it is
    that of a block's call for n samples: 3F + B. With neither it is that of the whole batch: F + B.

    A block call's inputs, and what operations between blocks save, are held as well. The first call
    with tensors of given shapes also runs two slices, apart and together, to see that samples do
    not depend on each other.

    Args:
        function: ``function(z, *args, **kwargs)``: a function, a method such as ``vae.decode``, or
            a module, pure in its arguments. z is a tensor or a pytree with tensors. What it returns
            may have any shape but for its first dimension, the batch: images, or one score a
            sample. It may be a pytree too.
        micro_batch: Samples in a slice. Tensors of z and of the arguments with the first dimension
            of z are cut. None is the whole batch at once.
        blocks: Modules that the function calls, such as ``[vae.decoder]`` of a VAE with tiling
            switched on, which is called once a tile; or ``"auto"``, the blocks of the model.
        params: As in `CheckpointedChain`.
        generators: As in `CheckpointedChain`.
        frozen: As in `CheckpointedChain`.
        verify: As in `CheckpointedChain`.

    Returns:
        A `CheckpointedChain` of one step, called as the function is. The messages of its errors
        call the function "step 0".

    Raises:
        TypeError: If ``function`` cannot be called, or another argument is of the wrong kind.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> head = in_slices(lambda z, emb: torch.tanh(z * emb).mean(1))
        >>> z = torch.ones(4, 8, requires_grad=True)
        >>> scores = head(z, torch.ones(4, 8))
        >>> (scores - scores.mean()).square().sum().backward()  # a loss over the whole batch
        >>> scores.shape
        torch.Size([4])
    """
    if not callable(function):
        raise TypeError(
            f"`function` must be callable as function(z, …), got a {type(function).__name__}. Pass "
            "a function, a method such as `vae.decode`, or a module."
        )
    return CheckpointedChain(
        partial(_as_step, function),
        num_steps=1,
        plan="nodes" if blocks is None else "blocks",
        micro_batch=micro_batch,
        blocks=blocks,
        params=params,
        generators=generators,
        frozen=frozen,
        verify=verify,
    )


def _as_step(function: Callable[..., Any], z: Any, i: int, /, *args: Any, **kwargs: Any) -> Any:
    return function(z, *args, **kwargs)
