"""ADM's config beside that of diffusers' `UNet2DModel`: where the two describe one network.

Both are DDPM's UNet with options, and most options of one have a counterpart in the other. Those
that have none are refused by name: a near miss would load and predict something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.export.diffusers_levels import adm_levels, diffusers_levels, refusal

# What is fixed in ADM, and the values of diffusers' fields that say so; the first is given to it.
FIXED: dict[str, tuple[Any, ...]] = {
    # The features of time are [cos, sin], their frequencies max_period^(-2j/dim).
    "time_embedding_type": ("positional",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "norm_num_groups": (32,),
    "norm_eps": (1e-5,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
}


def diffusers_config(config: UNetConfig) -> dict[str, Any]:
    """Return the arguments of the `UNet2DModel` that computes what an ADM UNet does.

    Args:
        config: The ADM UNet's architecture.

    Raises:
        ValueError: If no `UNet2DModel` does, naming the field.

    Example:
        >>> theirs = diffusers_config(UNetConfig(image_size=16, channel_mult=(1, 2)))
        >>> theirs["block_out_channels"], theirs["resnet_time_scale_shift"]
        ((128, 256), 'scale_shift')
    """
    if config.widths[0] != config.num_channels:
        raise ValueError(
            f"`channel_mult` begins with {config.channel_mult[0]}, expected 1: diffusers makes the "
            "features of time as wide as the first level. Such a model stays with hdiscovery."
        )
    return {
        **{field: expected[0] for field, expected in FIXED.items()},
        **diffusers_levels(config),
        "sample_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * (2 if config.learn_sigma else 1),
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
        # Where None, diffusers leaves the norm of the middle's attention out under scale_shift.
        "attn_norm_num_groups": 32,
        "dropout": config.dropout,
        "num_class_embeds": config.num_classes,
    }


def adm_config(theirs: Mapping[str, Any]) -> UNetConfig:
    """Return the architecture of the ADM UNet that computes what a `UNet2DModel` does.

    Args:
        theirs: The model's ``config``. A fixed field that its version of diffusers lacks counts as
            agreeing.

    Raises:
        ValueError: If no ADM UNet does, naming the field, its value and what was expected.

    Example:
        >>> config = UNetConfig(image_size=16, num_head_channels=64, attention_order="new")
        >>> adm_config(diffusers_config(config)) == config
        True
    """
    widths, C, edge = tuple(theirs["block_out_channels"]), theirs["in_channels"], _edge(theirs)
    modulation = theirs["resnet_time_scale_shift"]
    for field, expected in {
        **FIXED,
        "mid_block_type": ("UNetMidBlock2D",),
        "time_embedding_dim": (None, 4 * widths[0]),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "attn_norm_num_groups": (32, None) if modulation == "default" else (32,),
        "out_channels": (C, 2 * C),
        "_attention_order": ("new", "legacy"),
    }.items():
        value = theirs.get(field, expected[0])
        if value not in expected:
            raise refusal(field, value, " or ".join(map(repr, expected)))
    return UNetConfig(
        image_size=edge,
        in_channels=C,
        num_channels=widths[0],
        channel_mult=tuple(w / widths[0] if w % widths[0] else w // widths[0] for w in widths),
        num_res_blocks=theirs["layers_per_block"],
        # A note that `to_diffusers` leaves; with q, k and v apart, diffusers has no order.
        attention_order=theirs.get("_attention_order", "new"),
        dropout=theirs["dropout"],
        num_classes=theirs["num_class_embeds"],
        learn_sigma=theirs["out_channels"] == 2 * C,
        use_scale_shift_norm=modulation == "scale_shift",
        **adm_levels({**theirs, "sample_size": edge}),
    )


def _edge(theirs: Mapping[str, Any]) -> int:
    """Return the edge of the square images."""
    size, least = theirs["sample_size"], 2 ** (len(theirs["block_out_channels"]) - 1)
    edges = {size} if isinstance(size, int) else set(size or ())
    if len(edges) != 1 or min(edges) % least:
        raise refusal("sample_size", size, f"the edge of a square, a multiple of {least}")
    return edges.pop()
