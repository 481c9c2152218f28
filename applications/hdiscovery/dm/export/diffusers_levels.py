"""The levels of ADM's and diffusers' UNets: attention, its heads, changes of resolution.

diffusers names the type of each level's block, in the encoder and in the decoder. ADM lists the
resolutions with attention, and says once how all levels change the resolution. The module does not
import diffusers: its configs are plain mappings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from hdiscovery.dm.adm_config import UNetConfig

Side = Literal["Down", "Up"]
Resampling = Literal["conv", "resnet"]


def diffusers_levels(config: UNetConfig) -> dict[str, Any]:
    """Return the fields of diffusers' config that say what its levels are.

    Raises:
        ValueError: If the heads of ADM's attention cannot be said there.
    """
    attention = attention_levels(config)
    resampling = "resnet" if config.resblock_updown else "conv"
    return {
        "down_block_types": tuple(_block_type("Down", here, resampling) for here in attention),
        "up_block_types": tuple(_block_type("Up", here, resampling) for here in attention[::-1]),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "attention_head_dim": _head_dim(config),
    }


def adm_levels(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ADM's config that say what its levels are.

    Raises:
        ValueError: If the way up is not the mirror image of the way down, or ADM lacks the blocks.
    """
    down, up = _blocks(theirs, "Down"), _blocks(theirs, "Up")[::-1]
    attention = [here for here, _ in down]
    if attention != [here for here, _ in up]:
        expected = f"attention where `down_block_types` {theirs['down_block_types']} have it"
        raise refusal("up_block_types", theirs["up_block_types"], expected)
    # The deepest block goes no further down and the first no further up, whatever their types are.
    resamplings = {how for _, how in (*down[:-1], *up[1:])} or {"conv"}
    if len(resamplings) > 1:
        fields = ("down_block_types", "up_block_types", "downsample_type", "upsample_type")
        raise refusal(
            "downsample_type` and `upsample_type",
            {field: theirs.get(field, "conv") for field in fields},
            "convolutions ('conv') on all levels, or residual blocks ('resnet') on all",
        )
    heads, head_channels = _heads(theirs, attention)
    edge = theirs["sample_size"]
    return {
        "attention_resolutions": tuple(
            edge >> level for level, here in enumerate(attention) if here
        ),
        "resblock_updown": resamplings == {"resnet"},
        "num_heads": heads,
        "num_head_channels": head_channels,
    }


def attention_levels(config: UNetConfig) -> tuple[bool, ...]:
    """Return for each level, from the image down, whether its blocks have attention."""
    levels = range(len(config.channel_mult))
    return tuple(config.image_size >> level in config.attention_resolutions for level in levels)


def refusal(field: str, value: Any, expected: str) -> ValueError:
    """Return the error for a field of diffusers' config that ADM has no counterpart of."""
    return ValueError(
        f"`{field}` of the diffusers model is {value!r}, expected {expected}: no ADM UNet computes "
        "the same. Train a model whose config agrees, such as `to_diffusers(ADMUNet(config))`."
    )


def _block_type(side: Side, attention: bool, resampling: str) -> str:
    if attention:
        return f"Attn{side}Block2D"
    return f"Resnet{side}sampleBlock2D" if resampling == "resnet" else f"{side}Block2D"


def _blocks(theirs: Mapping[str, Any], side: Side) -> list[tuple[bool, Resampling]]:
    """Return of each block of one side whether it has attention, and how it resamples."""
    types, own = theirs[f"{side.lower()}_block_types"], theirs.get(f"{side.lower()}sample_type")
    known: dict[str, tuple[bool, Resampling]] = {
        _block_type(side, False, "conv"): (False, "conv"),
        _block_type(side, False, "resnet"): (False, "resnet"),
        _block_type(side, True, "conv"): (True, "resnet" if own == "resnet" else "conv"),
    }
    if not known.keys() >= set(types):
        raise refusal(f"{side.lower()}_block_types", types, f"none but {', '.join(known)}")
    return [known[name] for name in types]


def _head_dim(config: UNetConfig) -> int | None:
    """Return diffusers' channels per head, one number for all levels; None is one head."""
    if config.num_head_channels or config.num_heads == 1:
        return config.num_head_channels
    widths = _attended(config.widths, attention_levels(config))
    if len(widths) > 1:
        raise ValueError(
            f"`num_heads` is {config.num_heads} at {sorted(widths)} channels, expected 1: "
            "diffusers has one number of channels per head for all levels. A model with "
            "`num_head_channels` can go there; this one stays with hdiscovery."
        )
    return widths.pop() // config.num_heads


def _heads(theirs: Mapping[str, Any], attention: Iterable[bool]) -> tuple[int, int | None]:
    """Return ``num_heads`` and ``num_head_channels``."""
    widths, dim = theirs["block_out_channels"], theirs["attention_head_dim"]
    if dim is None:
        return 1, None
    if not any(width % dim for width in widths):
        return 1, dim
    # ADM's channels per head divide every width, with and without attention; its number of heads
    # may do where there is attention at one width.
    attended = _attended(widths, attention)
    heads = min(attended) // dim
    if len(attended) > 1 or min(attended) % dim or any(width % heads for width in widths):
        raise refusal("attention_head_dim", dim, f"a divisor of all `block_out_channels` {widths}")
    return heads, None


def _attended(widths: Iterable[int], attention: Iterable[bool]) -> set[int]:
    """Return the widths that attention works at; the middle, of the deepest, always has it."""
    widths = tuple(widths)
    return {width for width, here in zip(widths, attention, strict=True) if here} | {widths[-1]}
