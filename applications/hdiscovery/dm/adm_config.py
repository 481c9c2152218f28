"""The config of an ADM UNet, and the networks of the paper's Table 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttentionOrder = Literal["legacy", "new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """The architecture of an ADM UNet. Flags of the paper's Table 3 keep their names.

    Attributes:
        image_size: Pixels along an edge; with ``channel_mult`` it fixes h-space's resolution.
        in_channels: Image channels.
        num_channels: Base width; GroupNorm has 32 groups, so every width is a multiple of 32.
        channel_mult: Width of each resolution level, in units of ``num_channels``.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Edges in *pixels* at which attention follows each block. The
            middle block always has attention, as in ADM, also when this is empty.
        num_heads: Attention heads; ignored where ``num_head_channels`` is given.
        num_head_channels: Channels per head, or None.
        attention_order: ``"legacy"`` splits heads before q, k, v; ``"new"`` after. The keys are
            the same and the results are not, so a state dict cannot tell.
        dropout: Probability inside residual blocks.
        num_classes: Number of classes of a class-conditional model, or None.
        learn_sigma: The network also predicts a variance (2C channels out, the first C are
            the noise).
        use_scale_shift_norm: The time embedding scales and shifts instead of being added.
        resblock_updown: Residual blocks change the resolution instead of plain convolutions.

    Raises:
        ValueError: If the fields contradict each other.
    """

    image_size: int
    in_channels: int = 3
    num_channels: int = 128
    channel_mult: tuple[float, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ()
    num_heads: int = 1
    num_head_channels: int | None = None
    attention_order: AttentionOrder = "legacy"
    dropout: float = 0.0
    num_classes: int | None = None
    learn_sigma: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True

    def __post_init__(self) -> None:
        for mult in self.channel_mult:
            width = int(mult * self.num_channels)
            if width <= 0 or width % 32:
                raise ValueError(
                    f"`num_channels` times every `channel_mult` must be a multiple of 32 "
                    f"(GroupNorm has 32 groups), got {self.num_channels} x {mult}."
                )
            head = self.num_head_channels or 0
            if width % (head or self.num_heads):
                raise ValueError(
                    f"Attention heads must divide every width: {width} channels, `num_heads` "
                    f"{self.num_heads}, `num_head_channels` {self.num_head_channels}."
                )
        if self.image_size % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"`image_size` {self.image_size} cannot be halved "
                f"{len(self.channel_mult) - 1} times, as `channel_mult` asks."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution level."""
        return tuple(int(mult * self.num_channels) for mult in self.channel_mult)

    @property
    def embedding_channels(self) -> int:
        """Width of the time embedding, 4 x ``num_channels``."""
        return 4 * self.num_channels

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of one sample in h-space."""
        edge = self.image_size // 2 ** (len(self.channel_mult) - 1)
        return (self.widths[-1], edge, edge)


def _table_3(image_size: int, in_channels: int, num_channels: int, mult: tuple[int, ...],
             attention: tuple[int, ...], heads: int, dropout: float,
             order: AttentionOrder) -> UNetConfig:  # fmt: skip
    return UNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        num_channels=num_channels,
        channel_mult=mult,
        num_res_blocks=2,
        attention_resolutions=attention,
        num_heads=heads,
        dropout=dropout,
        attention_order=order,
    )


# The paper's Table 3. The attention order is not in it; PDAE, by the same author, has the new one
# for MNIST only.
TABLE_3 = {
    "MNIST32": _table_3(32, 1, 64, (1, 2, 2, 4), (), 1, 0.0, "new"),
    "Anime64": _table_3(64, 3, 64, (1, 2, 4, 8), (16,), 4, 0.0, "legacy"),
    "CelebAHQ128": _table_3(128, 3, 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, "legacy"),
    "AFHQ128": _table_3(128, 3, 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, "legacy"),
}
