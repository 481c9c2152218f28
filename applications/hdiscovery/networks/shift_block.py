"""The shift block f_t(h, k): one shared trunk and K output convolutions, the heads."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ShiftForm = Literal["adm", "ddpm"]


class ShiftBlock(nn.Module):
    """Predict dh, the change of h along each direction.

        trunk(h) = SiLU(GN(conv1x1(SiLU(GN(h))) + Linear(SiLU(emb))))       form "adm"
        trunk(h) = SiLU(GN(conv1x1(h) + Linear(SiLU(emb))))                 form "ddpm"
        dh       = W[k] trunk(h) + b[k]

    Asyrp has both forms: the first for ADM's networks, which the paper uses, and the second for
    DDPM's.

    The K heads are one stacked parameter, so that every head has a gradient in every step (zero
    for directions that were not drawn). Distributed training needs this.

    Args:
        channels: C of h-space, a multiple of 32. For C = 32 each group is one channel, and the
            norm removes the time embedding again, because it is constant over pixels.
        embedding_channels: Width of the network's time embedding.
        num_directions: K.
        form: Form of the trunk.
        timed: Whether the trunk takes the time embedding. Without it, f depends on t only
            through h.
        head_std: Standard deviation of the heads' initial weights. With 0, the paper's choice,
            every shift starts at 0.

    Shapes:
        h ``[N, C, H, W]``, emb ``[N, E]``, k ``[N]`` int64 -> ``[N, C, H, W]``. The argument t is
        ignored, because ``emb`` encodes it.

    References:
        Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space.
    """

    def __init__(
        self,
        channels: int,
        embedding_channels: int,
        num_directions: int,
        *,
        form: ShiftForm = "adm",
        timed: bool = True,
        head_std: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in get_args(ShiftForm):
            raise ValueError(
                f"`form` must be one of {', '.join(get_args(ShiftForm))}, got {form!r}."
            )
        self.form: ShiftForm = form
        self.timed = timed
        if form == "adm":
            self.norm_in = nn.GroupNorm(32, channels)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        if timed:
            self.emb = nn.Linear(embedding_channels, channels)
        self.norm_out = nn.GroupNorm(32, channels, eps=1e-5 if form == "adm" else 1e-6)
        self.weight = nn.Parameter(torch.randn(num_directions, channels, channels) * head_std)
        self.bias = nn.Parameter(torch.zeros(num_directions, channels))

    @property
    def heads(self) -> list[Tensor]:
        """The parameters with one row per direction."""
        return [self.weight, self.bias]

    def forward(self, h: Tensor, emb: Tensor, k: Tensor, t: int | None = None) -> Tensor:
        x = F.silu(self.norm_in(h)) if self.form == "adm" else h
        x = self.conv_in(x)
        if self.timed:
            x = x + self.emb(F.silu(emb))[:, :, None, None]
        x = F.silu(self.norm_out(x))
        N, C, H, W = x.shape
        # One grouped convolution, one group per sample. Whether bmm is faster depends on the
        # machine.
        W_k, b_k = self.weight[k].reshape(N * C, C, 1, 1), self.bias[k].reshape(N * C)
        return F.conv2d(x.reshape(1, N * C, H, W), W_k, b_k, groups=N).view(N, C, H, W)
