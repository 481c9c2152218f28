"""The facts about an ADM UNet that its state dict does not show: questions and answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.adm_config import AttentionOrder, UNetConfig
from hdiscovery.dm.inferred import Inferred
from hdiscovery.dm.schedules import SCHEDULES, ScheduleName


class Question(NamedTuple):
    """Something to be answered.

    Attributes:
        option: The command line's option that answers it, with its values.
        about: The question in words.
    """

    option: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What is known about a network besides its state dict; None means not known.

    Attributes:
        image_size: Pixels along an edge.
        num_heads: Attention heads, the same number at all widths; or else
        num_head_channels: channels per head.
        attention_order: Whether heads are split before q, k and v (``"legacy"``) or after.
        schedule: Name of the noise schedule.
        num_train_steps: T of the schedule.
        dropout: Of the training; it matters to a run's discriminator only.
    """

    image_size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    attention_order: AttentionOrder | None = None
    schedule: ScheduleName | None = None
    num_train_steps: int = 1000
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads is not None and self.num_head_channels is not None:
            raise ValueError(
                f"`--heads {self.num_heads}` and `--head-channels {self.num_head_channels}` answer "
                "the same question. Give one of them."
            )
        for name in ("image_size", "num_heads", "num_head_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def questions(self, inferred: Inferred) -> tuple[Question, ...]:
        """Return what is still to be answered."""
        least = inferred.least_size
        asked = {
            Question("--image-size PIXELS", f"edge of the images, a multiple of {least}"):
                self.image_size is None,
            Question("--heads N", "attention heads, or --head-channels C, the channels of each"):
                self.heads(inferred) is None,
            Question("--attention-order legacy|new", "new: use_new_attention_order was True"):
                self.attention_order is None and set(self.heads(inferred) or ()) != {1},
            Question("--schedule linear|cosine", "its noise_schedule"):
                self.schedule is None,
        }  # fmt: skip
        return tuple(question for question, open_ in asked.items() if open_)

    def heads(self, inferred: Inferred) -> tuple[int, ...] | None:
        """Return the number of heads at each of the attended widths, if it is known."""
        if self.num_heads is not None:
            return (self.num_heads,) * len(inferred.attended_widths)
        if self.num_head_channels is not None:
            return tuple(width // self.num_head_channels for width in inferred.attended_widths)
        return None

    def config(self, inferred: Inferred) -> UNetConfig:
        """Return the architecture; where the order makes no difference it is ``"legacy"``.

        Raises:
            ValueError: If something is not answered, or an answer does not go with the network.
        """
        if open_ := [q for q in self.questions(inferred) if not q.option.startswith("--schedule")]:
            options = ", ".join(f"`{question.option}`" for question in open_)
            raise ValueError(
                f"A state dict does not show the whole architecture; still to be given: {options}."
            )
        assert self.image_size is not None
        return UNetConfig(
            image_size=self.image_size,
            in_channels=inferred.in_channels,
            num_channels=inferred.num_channels,
            channel_mult=inferred.channel_mult,
            num_res_blocks=inferred.num_res_blocks,
            attention_resolutions=tuple(
                self.image_size >> level for level in inferred.attention_levels
            ),
            num_heads=1 if self.num_heads is None else self.num_heads,
            num_head_channels=self.num_head_channels,
            attention_order=self.attention_order or "legacy",
            dropout=self.dropout,
            num_classes=inferred.num_classes,
            learn_sigma=inferred.learn_sigma,
            use_scale_shift_norm=inferred.use_scale_shift_norm,
            resblock_updown=inferred.resblock_updown,
        )

    def noise_schedule(self) -> NoiseSchedule:
        """Return the noise schedule, which must be answered."""
        assert self.schedule is not None
        return SCHEDULES[self.schedule](self.num_train_steps)

    def but(self, **changes: Any) -> Answers:
        """Return these answers with others among them."""
        return replace(self, **changes)

    def options(self) -> str:
        """Return the command line's options that give these answers."""
        default = Answers()
        names = {
            "image_size": "--image-size", "num_heads": "--heads",
            "num_head_channels": "--head-channels", "attention_order": "--attention-order",
            "schedule": "--schedule", "num_train_steps": "--train-steps", "dropout": "--dropout",
        }  # fmt: skip
        return " ".join(
            f"{option} {getattr(self, name)}"
            for name, option in names.items()
            if getattr(self, name) != getattr(default, name)
        )
