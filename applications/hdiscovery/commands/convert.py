"""Turn published weights, or a diffusers folder, into a diffusion model's file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from hdiscovery.commands.answers import add_answer_options, answers_from, images_from
from hdiscovery.dm.adm_config import TABLE_3

HELP = "turn published weights or a diffusers folder into a model's file"
EXAMPLES = (
    "hdiscovery convert ema.pt --image-size 256 --head-channels 64 --attention-order legacy "
    "--schedule linear --images photos --out dm.safetensors",
    "hdiscovery convert ema.pt --architecture CelebAHQ128 --out dm.safetensors",
    "hdiscovery convert ddpm-folder --out dm.safetensors",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "weights", type=Path,
        help="ADM's ema_*.pt or model*.pt, PDAE's .pt, or a folder that a diffusers pipeline with "
        "a UNet2DModel was saved to (unet/ and scheduler/)",
    )  # fmt: skip
    parser.add_argument(
        "--architecture", metavar="NAME|JSON",
        help="instead of the answers below: one of "
        f"{', '.join(TABLE_3)}, or a JSON file of UNetConfig's fields",
    )  # fmt: skip
    add_answer_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(options: Namespace) -> None:
    """Turn published weights, or a diffusers folder, into a diffusion model's file."""
    if options.weights.is_dir():
        from hdiscovery.dm.export.diffusers_folder import convert_folder

        _refuse_answers(options)
        convert_folder(options.weights, options.out)
    elif options.weights.is_file():
        from hdiscovery.dm.conversion import convert
        from hdiscovery.dm.device import device_of

        convert(
            options.weights,
            options.out,
            architecture=options.architecture,
            answers=answers_from(options),
            images=partial(images_from, options.images) if options.images else None,
            device=device_of(options.device),
        )
        if options.images is None:
            print(
                "The answers were not checked: `--images FOLDER`, of such as the model was trained "
                "on, compares them with others."
            )
    else:
        raise FileNotFoundError(
            f"`weights` {options.weights} is not a file, and no diffusers folder either."
        )
    print(f"wrote {options.out}")


def _refuse_answers(options: Namespace) -> None:
    """Refuse options that a folder leaves no room for."""
    given = answers_from(options).options()
    for option, value in (("--architecture", options.architecture), ("--images", options.images)):
        given += f" {option} {value}" if value is not None else ""
    if given:
        raise ValueError(
            f"`{given.strip()}` does not go with a folder: diffusers writes the architecture into "
            "it. Leave it out."
        )
