"""The shift block f_t(h, k): one trunk, K output convolutions."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ShiftForm = Literal["adm", "ddpm"]


class ShiftBlock(nn.Module):
    """Predict the change of h that each direction makes.

        trunk(h) = SiLU(GN(conv1x1(SiLU(GN(h))) + Linear(SiLU(emb))))       form "adm"
        trunk(h) = SiLU(GN(conv1x1(h) + Linear(SiLU(emb))))                 form "ddpm"
        dh       = W[k] trunk(h) + b[k]

    Asyrp has both: the first beside ADM's networks, which are the paper's, the second beside
    DDPM's.

    The K output convolutions are one stacked parameter, so that every one of them has a gradient
    in every step (zero for directions that were not drawn), as distributed training needs.

    Args:
        channels: C of h-space, a multiple of 32. At 32 each group is one channel, and the norm
            takes the time embedding, a constant over the pixels, out again.
        embedding_channels: Width of the network's time embedding.
        num_directions: K.
        form: Which of the two trunks.
        timed: Whether the trunk is told the time; without it f depends on t through h alone.
        head_std: Standard deviation the heads' weights are drawn with; 0, the paper's choice,
            makes every shift start as nothing.

    Shapes:
        h ``[N, C, H, W]``, emb ``[N, E]``, k ``[N]`` int64 -> ``[N, C, H, W]``. The time t is not
        looked at: ``emb`` tells it.

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
        """The parameters that every direction has a row of."""
        return [self.weight, self.bias]

    def forward(self, h: Tensor, emb: Tensor, k: Tensor, t: int | None = None) -> Tensor:
        x = F.silu(self.norm_in(h)) if self.form == "adm" else h
        x = self.conv_in(x)
        if self.timed:
            x = x + self.emb(F.silu(emb))[:, :, None, None]
        x = F.silu(self.norm_out(x))
        N, C, H, W = x.shape
        # One grouped convolution, a group a sample; whether it beats bmm depends on the machine.
        W_k, b_k = self.weight[k].reshape(N * C, C, 1, 1), self.bias[k].reshape(N * C)
        return F.conv2d(x.reshape(1, N * C, H, W), W_k, b_k, groups=N).view(N, C, H, W)
