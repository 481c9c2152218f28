"""A step that calls a network once and then runs the scheduler.

The state is ``(x, carried)``: the sample, and the memory of the scheduler and of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chainograd.adapters.diffusers.protocols import Call, Protocol
from chainograd.adapters.diffusers.schedulers import PureScheduler
from chainograd.adapters.networks import predict
from chainograd.errors import ChainError
from chainograd.torch_internals import pytree

Carry = tuple[Tensor, dict[str, Any]]


class SamplingStep(nn.Module):
    r"""One call of the network and the scheduler's step.

    With guidance, both predictions are made in one batch of 2N:

        epsilon = epsilon_u + w (epsilon_c - epsilon_u)

    Args:
        model: The network, or a function ``model(x, t, …)``.
        scheduler: The scheduler, ready for its first step.
        protocol: The protocol of the scheduler.
        guidance_scale: w: a number, or a tensor with one number or one for each call. None means no
            guidance.
        options: Further arguments of the scheduler's step.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        scheduler: Any,
        protocol: Protocol,
        guidance_scale: float | Tensor | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.scheduler = PureScheduler(scheduler)
        self.protocol = protocol
        self.calls = protocol.calls(scheduler)
        self.guidance_scale = guidance_scale
        self.options = dict(options)

    def forward(self, carry: Carry, j: int, cond: Any, uncond: Any, w: Any) -> Carry:
        """Return the state after call j."""
        call = self.opened(carry, j)
        asked = self.protocol.enter(call)
        output = None
        if asked is not None and uncond is None:
            output = self.predicted(*asked, cond)
        elif asked is not None:
            x_in, t = asked
            t = torch.cat([t, t]) if isinstance(t, Tensor) and t.dim() else t
            both = self.predicted(torch.cat([x_in, x_in]), t, _joined(uncond, cond))
            unconditional, conditional = both.chunk(2)
            output = guided(unconditional, conditional, self.scale(j, w))
        return self.closed(call, output)

    def opened(self, carry: Carry, j: int) -> Call:
        """Return call j, with the memory that the state carries."""
        x, carried = carry
        scheduler = self.scheduler.remembering(carried.get("scheduler", {}))
        return Call(scheduler, x, j, dict(carried.get("aside", {})), self.options)

    def predicted(self, x_in: Tensor, t: Any, condition: Any) -> Tensor:
        """Return the network's prediction, without a variance that the scheduler does not use."""
        output = predict(self.model, x_in, t, condition)
        config = getattr(self.scheduler.original, "config", {})
        learned = str(config.get("variance_type", "")).startswith("learned")
        twice = (len(x_in), 2 * x_in.shape[1], *x_in.shape[2:])
        return output[:, : x_in.shape[1]] if output.shape == twice and not learned else output

    def closed(self, call: Call, output: Tensor | None) -> Carry:
        """Return the state after a call."""
        x = self.protocol.leave(call, output)
        if torch.is_grad_enabled() and not x.requires_grad:
            wanted = [t for t in (call.x, output) if t is not None and t.requires_grad]
            if wanted:
                raise ChainError(
                    f"Call {call.j}: {type(call.scheduler).__name__} returned a sample without a "
                    "gradient, although its input has one. A part of the scheduler runs under "
                    "no_grad or detaches its input. Use another scheduler: no gradient passes this "
                    "one."
                )
        memory = self.scheduler.memory_of(call.scheduler)
        return x, {"scheduler": memory, "aside": call.aside}

    def scale(self, j: int, w: Any) -> Any:
        """Return the guidance scale of call j."""
        w = self.guidance_scale if w is None else w
        if isinstance(w, Tensor) and w.dim():
            return w[j]
        return w


def guided(unconditional: Tensor, conditional: Tensor, w: Any) -> Tensor:
    """Return ``epsilon_u + w (epsilon_c - epsilon_u)``.

    References:
        Ho and Salimans (2022), Classifier-Free Diffusion Guidance.
    """
    return unconditional + w * (conditional - unconditional)


def _joined(uncond: Any, cond: Any) -> Any:
    """Return conditions for a batch of 2N, the unconditional ones first."""
    first, spec = pytree.tree_flatten(uncond)
    second, other = pytree.tree_flatten(cond)
    if spec != other:
        raise ValueError(
            f"`uncond` must have the structure of `cond` (the same keys), got {spec} and {other}."
        )
    return pytree.tree_unflatten(
        [
            torch.cat([a, b]) if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() else b
            for a, b in zip(first, second, strict=True)
        ],
        spec,
    )
