"""diffusers' `UNet2DModel` and `UNet2DConditionModel`, split where h-space is.

The weights are not converted: each part runs the model's own blocks in the order of its
``forward``. A model whose split forward would differ is refused, and the error names the field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hdiscovery.dm.hspace import Encoded, HSpaceUNet


class DiffusersUNet(HSpaceUNet):
    """The parts that both models share: sizes, the time embedding, the decoder's loop.

    Args:
        theirs: The model.
        image_size: Pixels along an edge; None is the config's ``sample_size``.

    Raises:
        ValueError: If the model is one whose h-space is not supported, naming the config's field.
    """

    def __init__(self, theirs: Any, image_size: int | None = None) -> None:
        super().__init__()
        config = theirs.config
        self.theirs = theirs
        deeper = sum(getattr(b, "downsamplers", None) is not None for b in theirs.down_blocks)
        edge = _edge(config.sample_size if image_size is None else image_size, 2**deeper)
        C, width = config.in_channels, config.block_out_channels[-1]
        if config.out_channels not in (C, 2 * C):
            raise _refusal("out_channels", config.out_channels, f"{C} or {2 * C}, as in_channels")
        if config.time_embedding_type == "fourier":
            raise _refusal(
                "time_embedding_type", "fourier", "'positional': times, not noise scales"
            )
        if theirs.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`unet` is in {theirs.dtype}, expected torch.float32, in which the samples are: "
                "pass `unet.float()`. A run's `--autocast bf16` makes it as fast."
            )
        self.image_shape = (C, edge, edge)
        self.h_shape = (width, edge >> deeper, edge >> deeper)
        self.embedding_channels = theirs.time_embedding.linear_2.out_features

    def fresh_encoder(self) -> DiffusersUNet:
        """Return a new network of this architecture, with weights of its own and no decoder."""
        theirs = type(self.theirs).from_config(self.theirs.config)
        for part in ("up_blocks", "conv_norm_out", "conv_out"):
            setattr(theirs, part, None)
        return type(self)(theirs.train(), self.image_shape[-1])

    def centred(self, x: Tensor) -> Tensor:
        """Return ``x`` as the model's first convolution is given it."""
        return 2 * x - 1.0 if self.theirs.config.center_input_sample else x

    def up(self, h: Tensor, encoded: Encoded, block: Callable[..., Tensor]) -> Tensor:
        """Return the decoder's output for ``h``; each block takes its part of the skips."""
        skips = encoded.skips
        for stage in self.theirs.up_blocks:
            n = len(stage.resnets)
            h, skips = block(stage, h, skips[-n:]), skips[:-n]
        return h


class UnconditionalUNet(DiffusersUNet):
    """A `UNet2DModel`.

    Shapes:
        As `HSpaceUNet`; y is class labels ``[N]`` (or features) where the model has classes.
    """

    def embed(self, x: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """Return the embedding of times (and classes)."""
        theirs = self.theirs
        emb = theirs.time_embedding(theirs.time_proj(t).to(theirs.dtype))
        if (y is None) != (theirs.class_embedding is None):
            raise ValueError(
                "`y` (class labels) must be given to a class-conditional model, and to no other. "
                "`hdiscovery.dm.conditioned.under(dm, label)` fixes one for a run."
            )
        if y is None:
            return emb
        if theirs.config.class_embed_type == "timestep":
            y = theirs.time_proj(y)
        return emb + theirs.class_embedding(y).to(theirs.dtype)

    def encode(self, x: Tensor, t: Tensor, y: Any = None) -> Encoded:
        """Return the deepest features, the skips and the time embedding of ``x`` at ``t``."""
        emb, image = self.embed(x, t, y), self.centred(x)
        h = self.theirs.conv_in(image)
        skips = (h,)
        for block in self.theirs.down_blocks:
            if hasattr(block, "skip_conv"):  # the Skip* blocks hand the image down beside h
                h, more, image = block(hidden_states=h, temb=emb, skip_sample=image)
            else:
                h, more = block(hidden_states=h, temb=emb)
            skips += more
        return Encoded(h, skips, emb)

    def middle(self, encoded: Encoded) -> Tensor:
        """Return ``h``, the output of ``mid_block``, or of the encoder in a model without one."""
        mid = self.theirs.mid_block
        return encoded.features if mid is None else mid(encoded.features, encoded.embedding)

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the model's output for ``h``."""
        theirs, image = self.theirs, None

        def up(block: Any, h: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
            nonlocal image
            if hasattr(block, "skip_conv"):
                h, image = block(h, skips, encoded.embedding, image)
                return h
            return block(h, skips, encoded.embedding)

        h = self.up(h, encoded, up)
        out = theirs.conv_out(theirs.conv_act(theirs.conv_norm_out(h)))
        return out if image is None else out + image


class ConditionUNet(DiffusersUNet):
    """A `UNet2DConditionModel`.

    Shapes:
        As `HSpaceUNet`; y is ``encoder_hidden_states`` ``[N, L, D]``, or a mapping that holds it
        and, as the model's ``forward`` names them, ``class_labels`` and the tensors of
        ``added_cond_kwargs`` (``text_embeds``, ``time_ids``, ``image_embeds``).
    """

    def __init__(self, theirs: Any, image_size: int | None = None) -> None:
        super().__init__(theirs, image_size)
        for field, values in (
            ("encoder_hid_dim_type", ("ip_image_proj",)),
            ("addition_embed_type", ("image_hint",)),
        ):
            if theirs.config[field] in values:
                raise _refusal(field, theirs.config[field], "none that adds further inputs")
        if theirs.config.class_embeddings_concat:
            self.embedding_channels *= 2

    def encode(self, x: Tensor, t: Tensor, y: Any = None) -> Encoded:
        """Return the deepest features, the skips, the embedding and what is attended to."""
        theirs, added = self.theirs, _named(y)
        states, labels = added.pop("encoder_hidden_states"), added.pop("class_labels", None)
        emb = self.embed(x, t, states, labels, added)
        states = theirs.process_encoder_hidden_states(states, added)
        h = theirs.conv_in(self.centred(x))
        skips = (h,)
        for block in theirs.down_blocks:
            h, more = block(hidden_states=h, temb=emb, **_attended(block, (states,)))
            skips += more
        return Encoded(h, skips, emb, (states,))

    def embed(
        self, x: Tensor, t: Tensor, states: Tensor, labels: Tensor | None, added: dict[str, Tensor]
    ) -> Tensor:
        """Return the embedding of times, and of classes and whatever else the model adds."""
        theirs = self.theirs
        x = self.centred(x)
        emb = theirs.time_embedding(theirs.get_time_embed(sample=x, timestep=t), None)
        of_class = theirs.get_class_embed(sample=x, class_labels=labels)
        if of_class is not None:
            concat = theirs.config.class_embeddings_concat
            emb = torch.cat([emb, of_class], dim=-1) if concat else emb + of_class
        more = theirs.get_aug_embed(emb=emb, encoder_hidden_states=states, added_cond_kwargs=added)
        emb = emb if more is None else emb + more
        return emb if theirs.time_embed_act is None else theirs.time_embed_act(emb)

    def middle(self, encoded: Encoded) -> Tensor:
        """Return ``h``, the output of ``mid_block``, or of the encoder in a model without one."""
        mid, h = self.theirs.mid_block, encoded.features
        if mid is None:
            return h
        return mid(h, encoded.embedding, **_attended(mid, encoded.context))

    def decode(self, h: Tensor, encoded: Encoded) -> Tensor:
        """Return the model's output for ``h``."""
        theirs = self.theirs

        def up(block: Any, h: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
            return block(
                hidden_states=h, temb=encoded.embedding, res_hidden_states_tuple=skips,
                **_attended(block, encoded.context),
            )  # fmt: skip

        h = self.up(h, encoded, up)
        if theirs.conv_norm_out:
            h = theirs.conv_act(theirs.conv_norm_out(h))
        return theirs.conv_out(h)


def _named(y: Any) -> dict[str, Tensor]:
    """Return a condition's tensors by name."""
    named = dict(y) if isinstance(y, Mapping) else {"encoder_hidden_states": y}
    if named.get("encoder_hidden_states") is None:
        raise ValueError(
            "A UNet2DConditionModel needs `encoder_hidden_states`, and `y` does not hold them. "
            "`diffusers_model(unet, scheduler, condition=…)` fixes them for a run."
        )
    return named


def _attended(block: Any, context: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the further arguments of a block with cross attention."""
    states, *_ = context
    return {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}


def _edge(size: Any, least: int) -> int:
    """Return the edge of the square images."""
    edges = {size} if isinstance(size, int) else set(size or ())
    if len(edges) != 1 or min(edges) % least:
        raise _refusal(
            "sample_size", size, f"the edge of a square, a multiple of {least} (in Python, "
            "`image_size=` gives another)",
        )  # fmt: skip
    return edges.pop()


def _refusal(field: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"`{field}` of the diffusers model is {value!r}, expected {expected}.")
