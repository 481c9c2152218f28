"""What published weights do not tell, as options; and the images that answers are checked on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hdiscovery.dm.adm_answers import Answers

MOST_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What the .pt files of ADM and PDAE do not tell.

    Attributes:
        image_size: Edge of the images.
        heads: Attention heads at all widths; or else give head_channels.
        head_channels: Channels of each attention head.
        attention_order: new if guided-diffusion's use_new_attention_order is True.
        schedule: Noise schedule.
        train_steps: Length of the noise schedule.
        dropout: Dropout of the training, which a run's discriminator takes over.
    """

    image_size: Annotated[int | None, arg(metavar="PIXELS")] = None
    heads: int | None = None
    head_channels: int | None = None
    attention_order: Literal["legacy", "new"] | None = None
    schedule: Literal["linear", "cosine"] | None = None
    train_steps: int = 1000
    dropout: float = 0.0

    def answers(self) -> Answers:
        """Return the answers that the options give."""
        from hdiscovery.dm.adm_answers import Answers

        given = asdict(self)
        names = {"heads": "num_heads", "head_channels": "num_head_channels",
                 "train_steps": "num_train_steps"}  # fmt: skip
        return Answers(**{names.get(name, name): value for name, value in given.items()})


def reader(path: Path | None) -> Callable[[tuple[int, int, int]], Tensor] | None:
    """Return what reads images of a shape from a path, None if there is no path."""
    return None if path is None else partial(images_from, path)


def images_from(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return the first images of a folder, made to fit ``(C, H, W)``.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If an image cannot be read, or there is one image: it tells nothing of chance.
    """
    import torch

    from hdiscovery.data.images import listed, read_photo

    files = listed([path])[:MOST_IMAGES]
    if len(files) < 2:
        raise ValueError(
            f"`--data` {path} is one image. Differences are told from chance on two images or "
            "more: give a folder of them."
        )
    return torch.stack([read_photo(file, shape).x for file in files])
