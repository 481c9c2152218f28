"""The inputs of a network's forward pass, guessed from its signature and its config.

Diffusers gives an input the same name in every class, and says its width in the config. What the
two do not say is the size of the problem: the state's shape, the number of text tokens, and the
grid of tokens if the state is a sequence. An input with another name must be described.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Names for the width of the text in configs. The first one that is there holds: a network that
# projects captions has both `caption_channels` and the width that it projects them to.
TEXT_WIDTHS = (
    "caption_channels", "text_embed_dim", "text_dim", "joint_attention_dim", "cross_attention_dim",
)  # fmt: skip
LEFT_OUT = frozenset({"timestep", "return_dict"})  # a step gives these itself
IF_REQUIRED = frozenset({"encoder_attention_mask"})  # a text without padding needs no mask


@dataclass(frozen=True)
class Of:
    """A tensor to be made.

    Attributes:
        shape: Its shape.
        dtype: Its type; None is the network's. Tensors of whole numbers and truth values are ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def made(self, dtype: torch.dtype) -> Tensor:
        """Return the tensor; ``dtype`` is the network's."""
        own = self.dtype or dtype
        return torch.randn(self.shape).to(own) if own.is_floating_point else torch.ones(
            self.shape, dtype=own
        )  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What neither a signature nor a config says.

    Attributes:
        state: Shape of the state ``x``, the forward pass's first argument.
        text_tokens: Number of text tokens.
        grid: Frames, rows and columns of tokens, for a state that is a sequence of tokens.
        others: Inputs by name, for what cannot be guessed: tensors to be made, or values.
    """

    state: tuple[int, ...]
    text_tokens: int = 0
    grid: tuple[int, int, int] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)


Guess = Callable[[Mapping[str, Any], Size], Any]  # (config, size) -> tensors, a value, or None


def inputs(cls: type[nn.Module], config: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Return the inputs besides state and timestep: tensors to be made, values, or dicts of them.

    Args:
        cls: The network's class.
        config: All arguments of its constructor, those left at their defaults included.
        size: What cannot be guessed.

    Returns:
        The inputs by name; one that the network can do without is left out.

    Raises:
        ValueError: If a required input has a name that is not known, or lacks a size.
    """
    found: dict[str, Any] = {}
    parameters = list(inspect.signature(cls.forward).parameters.values())[2:]
    for parameter in parameters:
        name, required = parameter.name, parameter.default is inspect.Parameter.empty
        if name in LEFT_OUT or (name in IF_REQUIRED and not required):
            continue
        value = size.others[name] if name in size.others else _guess(name, config, size)
        if value is not None:
            found[name] = value
        elif required:
            raise ValueError(
                f"`{cls.__name__}.forward` requires `{name}`, which cannot be guessed. Describe "
                f"it: `--input {name}=1,256:bfloat16` for a tensor, `--value {name}=…` for another."
            )
    return found


def full_config(cls: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the constructor's defaults, without the notes that files have."""
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if k != "self"}
    return {**defaults, **{k: v for k, v in config.items() if k in defaults}}


def _guess(name: str, config: Mapping[str, Any], size: Size) -> Any:
    guess = GUESSES.get(name)
    return guess(config, size) if guess else None


def _text(config: Mapping[str, Any], size: Size) -> Of | None:
    width = next((config[k] for k in TEXT_WIDTHS if config.get(k)), None)
    if width is None:
        return None
    if not size.text_tokens:
        raise ValueError("The network reads a text; say of how many tokens: `--text-tokens 512`.")
    return Of((size.state[0], size.text_tokens, int(width)))


def _mask(config: Mapping[str, Any], size: Size) -> Of | None:
    return Of((size.state[0], size.text_tokens), torch.int64) if size.text_tokens else None


def _pooled(config: Mapping[str, Any], size: Size) -> Of | None:
    width = config.get("pooled_projection_dim")
    return Of((size.state[0], int(width))) if width else None


def _guidance(config: Mapping[str, Any], size: Size) -> Of | None:
    return Of((size.state[0],), torch.float32) if config.get("guidance_embeds") else None


def _positions(of_text: bool) -> Guess:
    def guess(config: Mapping[str, Any], size: Size) -> Of:
        tokens = size.text_tokens if of_text else size.state[1]
        return Of((tokens, len(config["axes_dims_rope"])))

    return guess


def _image_shapes(config: Mapping[str, Any], size: Size) -> Any:
    return [[_grid(size)]] * size.state[0]


def _of_grid(axis: int) -> Guess:
    return lambda config, size: _grid(size)[axis] if len(size.state) == 3 else None


def _grid(size: Size) -> tuple[int, int, int]:
    if size.grid is None:
        raise ValueError(
            f"The state {size.state} is a sequence of tokens; say how they lie: "
            f"`--grid FRAMES,ROWS,COLUMNS`."
        )
    return size.grid


def _added(config: Mapping[str, Any], size: Size) -> dict[str, Any] | None:
    batch = size.state[0]
    if config.get("addition_embed_type") == "text_time":
        times = 6 * int(config["addition_time_embed_dim"])
        width = int(config["projection_class_embeddings_input_dim"]) - times
        return {"text_embeds": Of((batch, width)), "time_ids": Of((batch, 6))}
    if "use_additional_conditions" in config:  # PixArt, which asks for both in any case
        asked = config["use_additional_conditions"]
        asked = config["sample_size"] == 128 if asked is None else asked
        return {
            "resolution": Of((batch, 2)) if asked else None,
            "aspect_ratio": Of((batch, 1)) if asked else None,
        }
    return None


def _labels(config: Mapping[str, Any], size: Size) -> Of | None:
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    return Of((size.state[0],), torch.int64) if classes else None


GUESSES: dict[str, Guess] = {
    "encoder_hidden_states": _text,
    "encoder_attention_mask": _mask,
    "pooled_projections": _pooled,
    "guidance": _guidance,
    "img_ids": _positions(of_text=False),
    "txt_ids": _positions(of_text=True),
    "img_shapes": _image_shapes,
    "num_frames": _of_grid(0),
    "height": _of_grid(1),
    "width": _of_grid(2),
    "added_cond_kwargs": _added,
    "class_labels": _labels,
}
