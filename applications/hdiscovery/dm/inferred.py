"""The architecture of an ADM UNet, as far as its state dict shows it.

The names and shapes of the tensors show the widths, the blocks, the attention and the outputs. They
do not show the heads, the attention order, the image size and the noise schedule:
`hdiscovery.dm.adm_answers` asks for these.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """The part of an ADM UNet's architecture that its state dict shows.

    Attributes:
        in_channels: Image channels.
        num_channels: Base width.
        widths: Channels of each level, from the image down.
        num_res_blocks: Residual blocks per level.
        attention_levels: The levels with attention, 0 is the image's; the middle always has it.
        num_classes: Number of classes, or None.
        learn_sigma: Whether a variance is predicted too.
        use_scale_shift_norm: Whether the time embedding scales and shifts.
        resblock_updown: Whether residual blocks change the resolution.
        parameters: How many numbers the state dict holds.
    """

    in_channels: int
    num_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    num_classes: int | None
    learn_sigma: bool
    use_scale_shift_norm: bool
    resblock_updown: bool
    parameters: int

    @property
    def channel_mult(self) -> tuple[float, ...]:
        """Width of each level in units of ``num_channels``."""
        return tuple(_multiple(width, self.num_channels) for width in self.widths)

    @property
    def attended_widths(self) -> tuple[int, ...]:
        """The widths that attention works at, the middle's among them."""
        return tuple(sorted({self.widths[level] for level in (*self.attention_levels, -1)}))

    @property
    def least_size(self) -> int:
        """The number that the image size is a multiple of."""
        return 2 ** (len(self.widths) - 1)


def infer(state: Mapping[str, Tensor]) -> Inferred:
    """Return the part of an ADM UNet's architecture that its state dict shows.

    Only the shapes of some tensors are read. Whether all tensors fit is checked when they are
    loaded.

    Args:
        state: State dict of `ADMUNet`, guided-diffusion's ``UNetModel`` or PDAE's ``UNet``.

    Raises:
        ValueError: If it is not an ADM UNet's; the error names the tensor that is missing or does
            not fit.

    Example:
        >>> from hdiscovery.dm.adm_config import UNetConfig
        >>> from hdiscovery.dm.adm_unet import ADMUNet
        >>> config = UNetConfig(image_size=16, num_channels=32, channel_mult=(1, 2))
        >>> infer(ADMUNet(config).state_dict()).channel_mult
        (1, 2)
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    first, time = _shape(shapes, "input_blocks.0.0.weight"), _shape(shapes, "time_embed.0.weight")
    out = _shape(shapes, "out.2.weight")
    if out[0] not in (first[1], 2 * first[1]):
        raise _no_adm(
            f"`out.2.weight` has {out[0]} output channels for images of {first[1]}; expected "
            "as many, or twice as many (learn_sigma)"
        )
    levels, blocks, resampling = _way_up(shapes)
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    stages = [[i + block for block in range(blocks)] for i in firsts]
    convs = [[_shape(shapes, f"input_blocks.{i}.0.in_layers.2.weight") for i in s] for s in stages]
    widths = tuple(level[0][0] for level in convs)
    modulation = _shape(shapes, "middle_block.0.emb_layers.1.weight")[0]
    return Inferred(
        in_channels=first[1],
        num_channels=time[1],
        widths=widths,
        num_res_blocks=blocks,
        attention_levels=tuple(
            level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
        ),
        num_classes=shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        learn_sigma=out[0] == 2 * first[1],
        use_scale_shift_norm=modulation == 2 * widths[-1],
        resblock_updown=resampling == "resblock",
        parameters=sum(math.prod(shape) for shape in shapes.values()),
    )


def _way_up(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, str]:
    """Return the number of levels, of residual blocks per level, and what changes the resolution.

    A residual block that halves the resolution has the keys of any other. A residual block that
    doubles it is the second one of a stage, or a convolution stands beside the first, and the level
    ends there. So the decoder is read.
    """
    stages = 1 + max(
        (int(found[1]) for key in shapes if (found := re.match(r"output_blocks\.(\d+)\.", key))),
        default=-1,
    )
    if not stages:
        raise _no_adm("there is no `output_blocks.0`")
    kinds = {"in_layers.2.weight": "resblock", "conv.weight": "conv"}
    ups = {
        stage: kind
        for stage in range(stages)
        for layer in (1, 2)
        for leaf, kind in kinds.items()
        if f"output_blocks.{stage}.{layer}.{leaf}" in shapes
    }
    per_level = min(ups, default=stages - 1) + 1
    expected = list(range(per_level - 1, stages - 1, per_level))
    if sorted(ups) != expected or stages % per_level or len(set(ups.values())) > 1:
        raise _no_adm(
            f"of {stages} `output_blocks`, the blocks {sorted(ups)} double the resolution; "
            "expected the last block of each level, all by convolutions or all by residual blocks"
        )
    return stages // per_level, per_level - 1, next(iter(ups.values()), "resblock")


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise _no_adm(f"`{key}` is not among its {len(shapes)} tensors")
    return shapes[key]


def _no_adm(why: str) -> ValueError:
    return ValueError(f"The state dict is not an ADM UNet's: {why}.")


def _multiple(width: int, base: int) -> float:
    """Return the m for which ``int(m * base)`` is ``width``, as ADM computes it."""
    if width % base == 0:
        return width // base
    m = width / base
    return m if int(m * base) == width else math.nextafter(m, math.inf)
