"""The shift block f_t(h, k): one trunk, K output convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ShiftBlock(nn.Module):
    """Predict the change of h that each direction makes, after ADM's residual block.

        trunk(h) = SiLU(GN(conv1x1(SiLU(GN(h))) + Linear(SiLU(emb))))
        dh       = W[k] trunk(h) + b[k]

    The K output convolutions are one stacked parameter, so that every one of them has a gradient
    in every step (zero for directions that were not drawn), as distributed training needs.

    Args:
        channels: C of h-space, a multiple of 32.
        embedding_channels: Width of the network's time embedding.
        num_directions: K.
        head_std: Standard deviation the heads' weights are drawn with; 0, the paper's choice,
            makes every shift start as nothing.

    Shapes:
        h ``[N, C, H, W]``, emb ``[N, E]``, k ``[N]`` int64 -> ``[N, C, H, W]``.

    References:
        Kwon et al. (2022), Diffusion Models Already Have a Semantic Latent Space.
    """

    def __init__(
        self,
        channels: int,
        embedding_channels: int,
        num_directions: int,
        *,
        head_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(32, channels)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.emb = nn.Linear(embedding_channels, channels)
        self.norm_out = nn.GroupNorm(32, channels)
        self.weight = nn.Parameter(torch.randn(num_directions, channels, channels) * head_std)
        self.bias = nn.Parameter(torch.zeros(num_directions, channels))

    def forward(self, h: Tensor, emb: Tensor, k: Tensor) -> Tensor:
        x = self.conv_in(F.silu(self.norm_in(h))) + self.emb(F.silu(emb))[:, :, None, None]
        x = F.silu(self.norm_out(x))
        N, C, H, W = x.shape
        # One grouped convolution, a group a sample; whether it beats bmm depends on the machine.
        W_k, b_k = self.weight[k].reshape(N * C, C, 1, 1), self.bias[k].reshape(N * C)
        return F.conv2d(x.reshape(1, N * C, H, W), W_k, b_k, groups=N).view(N, C, H, W)
