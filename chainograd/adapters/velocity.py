"""Flow-matching networks of other libraries as the velocity that `FlowEuler` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

Order = Literal["x, t", "t, x"]


class VelocityFromDataAtOne(nn.Module):
    """A velocity whose time runs from noise at 1 to data at 0; made by `from_data_at_one`."""

    def __init__(self, model: Callable[..., Tensor], order: Order, scale: float) -> None:
        super().__init__()
        self.model = model
        self.order = order
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return ``v(x, t)``; t is ``[N]`` or one number for all."""
        s = self.scale * (1 - t)
        first, second = (x, s) if self.order == "x, t" else (s, x)
        return -self.model(first, second, *args, **kwargs)


def from_data_at_one(
    model: Callable[..., Tensor], *, order: Order = "x, t", scale: float = 1.0
) -> VelocityFromDataAtOne:
    r"""Return the velocity of a network whose time runs from noise at 0 to data at 1.

    There, with data x_0 and noise e, and s = 1 - t,

        x_s = s x_0 + (1 - s) e,        u(x_s, s) = x_0 - e

    which is the path of `FlowEuler` the other way round:

        v(x, t) = -u(x, 1 - t)

    Args:
        model: u. Whatever the chain is called with besides x is passed on to it.
        order: How u takes its arguments: ``"x, t"`` as in flow_matching and in the code of
            Rectified Flow, ``"t, x"`` as in torchcfm (TorchCFM) and whatever torchdiffeq solves.
        scale: The data's time as u counts it: 999 in the code of Rectified Flow, else 1.

    Returns:
        A module, so that a chain finds the network's parameters.

    Raises:
        ValueError: If the order is unknown.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling.
        Tong et al. (2024), Improving and Generalizing Flow-Based Generative Models.
        Liu et al. (2023), Flow Straight and Fast.

    Example:
        >>> import torch
        >>> from chainograd.samplers import FlowEuler, flow_times
        >>> to_seven = lambda s, x: (7 - x) / (1 - s[:, None])
        >>> step = FlowEuler(from_data_at_one(to_seven, order="t, x"), flow_times(2))
        >>> step(step(torch.zeros(1, 1), 0), 1)
        tensor([[7.]])
    """
    if order not in get_args(Order):
        raise ValueError(
            f"`order` must be one of {get_args(Order)}, got {order!r}. A network called otherwise "
            "is adapted by a function: `lambda x, t: -u(..., 1 - t)`."
        )
    return VelocityFromDataAtOne(model, order, scale)
