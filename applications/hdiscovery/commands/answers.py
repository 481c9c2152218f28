"""Options of several commands: what published weights do not tell, and images to check it on."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hdiscovery.dm.adm_answers import Answers

MOST_IMAGES = 16


def add_answer_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("what ADM's and PDAE's .pt files do not tell")
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="edge of the images")
    group.add_argument("--heads", type=int, metavar="N", help="attention heads at all widths, or")
    group.add_argument("--head-channels", type=int, metavar="C", help="channels of each head")
    group.add_argument(
        "--attention-order", choices=("legacy", "new"),
        help="new if guided-diffusion's use_new_attention_order is True",
    )  # fmt: skip
    group.add_argument("--schedule", choices=("linear", "cosine"), help="noise schedule")
    group.add_argument(
        "--train-steps", type=int, default=1000, metavar="T", help="its length (default: 1000)"
    )
    group.add_argument(
        "--dropout", type=float, default=0.0, metavar="P",
        help="of its training; a run's discriminator has it too (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER",
        help="a folder of images of the kind the model was trained on: on up to "
        f"{MOST_IMAGES} of them its noise-prediction error is measured",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", help="where to measure: auto, cpu, cuda, cuda:1, …"
    )


def answers_from(options: Namespace) -> Answers:
    """Return the answers that the options give."""
    from hdiscovery.dm.adm_answers import Answers

    return Answers(
        image_size=options.image_size,
        num_heads=options.heads,
        num_head_channels=options.head_channels,
        attention_order=options.attention_order,
        schedule=options.schedule,
        num_train_steps=options.train_steps,
        dropout=options.dropout,
    )


def images_from(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return the first images of a path, made to fit ``(C, H, W)``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If one cannot be read, or there are fewer than two: one tells nothing of chance.
    """
    import torch

    from hdiscovery.data.images import listed, read_photo

    files = listed([path])[:MOST_IMAGES]
    if len(files) < 2:
        raise ValueError(
            f"`--images` {path} is one image; give a folder of two or more, to tell differences "
            "from chance."
        )
    return torch.stack([read_photo(file, shape).x for file in files])
