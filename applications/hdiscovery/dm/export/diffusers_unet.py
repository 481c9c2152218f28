"""ADM's UNet as diffusers' `UNet2DModel` and back, weights and all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_state import load_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.diffusers_model import import_diffusers
from hdiscovery.dm.export.diffusers_config import adm_config, diffusers_config
from hdiscovery.dm.export.diffusers_levels import attention_levels

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

# The layers of a block, ADM's name and diffusers'. Its q, k and v are three layers.
LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    "norm": "group_norm", "qkv": "to_{}", "proj_out": "to_out.0",
    "op": "conv", "conv": "conv",
}  # fmt: skip


def to_diffusers(unet: ADMUNet) -> UNet2DModel:
    """Return the `UNet2DModel` that computes what ``unet`` does, to rounding.

    The weights are copied bit for bit; dtype, device and mode are the same as in ``unet``. The new
    model's config notes the order of the attention's channels: diffusers does not need it, and the
    conversion back does.

    Args:
        unet: The network.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If no `UNet2DModel` computes the same: `num_heads` above 1 with attention at
            several widths, or a first `channel_mult` other than 1.

    Example:
        >>> unet = ADMUNet(UNetConfig(image_size=8, num_channels=32, channel_mult=(1, 1)))
        >>> to_diffusers(unet)(torch.zeros(2, 3, 8, 8), 999).sample.shape
        torch.Size([2, 3, 8, 8])
    """
    theirs = import_diffusers("to_diffusers").UNet2DModel(**diffusers_config(unet.config))
    theirs.register_to_config(_attention_order=unet.config.attention_order)
    ours, state = unet.state_dict(), {}
    for key, names in sources(ours, unet.config).items():
        value = ours[key].squeeze(-1) if ours[key].ndim == 3 else ours[key]
        pieces = split_qkv(value, unet.config) if len(names) == 3 else (value,)
        state |= {name: piece.clone() for name, piece in zip(names, pieces, strict=True)}
    theirs.load_state_dict(state, assign=True)  # in their own dtype, on their own device
    return theirs.train(unet.training)


def from_diffusers(theirs: UNet2DModel) -> ADMUNet:
    """Return the ADM UNet that computes what a `UNet2DModel` does, to rounding.

    Args:
        theirs: The model. Its weights are copied, their values kept to the bit; dtype, device and
            mode are its own.

    Raises:
        ImportError: If diffusers is not installed.
        ValueError: If no ADM UNet computes the same, naming the config's field; or if the model
            holds other weights than its config says.

    Example:
        >>> unet = ADMUNet(UNetConfig(image_size=8, num_channels=32, channel_mult=(1, 1)))
        >>> from_diffusers(to_diffusers(unet)).config == unet.config
        True
    """
    expected = import_diffusers("from_diffusers").UNet2DModel
    if not isinstance(theirs, expected):
        raise ValueError(
            f"`theirs` is a {type(theirs).__name__}, expected a UNet2DModel, the only network of "
            "diffusers that ADM's agrees with."
        )
    unet = ADMUNet(adm_config(theirs.config)).to(theirs.device, theirs.dtype)
    state = theirs.state_dict()
    made_of = sources(unet.state_dict(), unet.config)
    strangers = sorted({name for names in made_of.values() for name in names} ^ state.keys())
    if strangers:
        raise ValueError(
            f"`theirs` has other weights than its config says ({', '.join(strangers[:3])}, … "
            f"{len(strangers)} in all). Merge adapters (LoRA) and unfuse projections first."
        )
    ours = {}
    for key, like in unet.state_dict().items():
        pieces = [state[name] for name in made_of[key]]
        value = join_qkv(pieces, unet.config) if len(pieces) == 3 else pieces[0]
        ours[key] = value.unsqueeze(-1) if like.ndim == 3 else value
    load_state(unet, ours, "the diffusers model")
    return unet.train(theirs.training)


def sources(keys: Iterable[str], config: UNetConfig) -> dict[str, tuple[str, ...]]:
    """Return for each of ADM's tensors the one of diffusers', or the three, that it is made of."""
    layers = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
              "label_emb": "class_embedding", "input_blocks.0.0": "conv_in",
              "out.0": "conv_norm_out", "out.2": "conv_out"}  # fmt: skip
    for ours, theirs in blocks(config):
        layers |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in LAYERS.items()}
    made_of = {}
    for key in keys:
        layer, leaf = key.rsplit(".", 1)
        name = f"{layers[layer]}.{leaf}"
        made_of[key] = tuple(map(name.format, "qkv")) if "{}" in name else (name,)
    return made_of


def blocks(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """Yield the name of each block, ADM's and diffusers', from the image down and up again."""
    attention, deepest, R = attention_levels(config), len(config.widths) - 1, config.num_res_blocks
    stage = 1
    for level, here in enumerate(attention):
        for block in range(R):
            yield f"input_blocks.{stage}.0", f"down_blocks.{level}.resnets.{block}"
            if here:
                yield f"input_blocks.{stage}.1", f"down_blocks.{level}.attentions.{block}"
            stage += 1
        if level < deepest:
            yield f"input_blocks.{stage}.0", f"down_blocks.{level}.downsamplers.0"
            stage += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    for up, here in enumerate(attention[::-1]):
        for block in range(R + 1):
            stage = f"output_blocks.{up * (R + 1) + block}"
            yield f"{stage}.0", f"up_blocks.{up}.resnets.{block}"
            if here:
                yield f"{stage}.1", f"up_blocks.{up}.attentions.{block}"
            if up < deepest and block == R:
                yield f"{stage}.{2 if here else 1}", f"up_blocks.{up}.upsamplers.0"


def split_qkv(joint: Tensor, config: UNetConfig) -> tuple[Tensor, ...]:
    """Return q, k and v, each ``[C, ...]`` with its heads in a row, of ADM's ``[3C, ...]``."""
    if config.attention_order == "legacy":  # [heads, (q k v), C/heads]
        parts = joint.unflatten(0, (_heads(joint, config), 3, -1)).unbind(1)
        return tuple(part.flatten(0, 1) for part in parts)
    return joint.chunk(3)  # [(q k v), heads, C/heads]


def join_qkv(parts: Iterable[Tensor], config: UNetConfig) -> Tensor:
    """Return ADM's ``[3C, ...]`` of q, k and v; the inverse of `split_qkv`."""
    joint = torch.cat(tuple(parts))
    if config.attention_order == "legacy":
        joint = joint.unflatten(0, (3, _heads(joint, config), -1)).transpose(0, 1).flatten(0, 2)
    return joint


def _heads(joint: Tensor, config: UNetConfig) -> int:
    per_head = config.num_head_channels
    return len(joint) // 3 // per_head if per_head else config.num_heads
