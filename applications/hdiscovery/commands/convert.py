"""Turn published weights, or a diffusers folder, into a diffusion model's file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hdiscovery.models.adm_unet import TABLE_3

HELP = "turn published weights or a diffusers folder into a model's file"
EXAMPLES = (
    "hdiscovery convert ema.pt --architecture CelebAHQ128 --out dm.safetensors",
    "hdiscovery convert ddpm-folder --out dm.safetensors",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "weights", type=Path,
        help="ADM's ema_*.pt, PDAE's .pt, or a folder that a diffusers pipeline with a UNet2DModel "
        "was saved to (unet/ and scheduler/)",
    )  # fmt: skip
    parser.add_argument(
        "--architecture", metavar="NAME|JSON",
        help=f"of a .pt file: one of {', '.join(TABLE_3)}, or a JSON file of UNetConfig's fields",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")


def run(options: Namespace) -> None:
    """Turn published weights, or a diffusers folder, into a diffusion model's file."""
    if options.weights.is_dir():
        from hdiscovery.models.diffusers_folder import convert_folder

        if options.architecture is not None:
            raise ValueError(
                f"`--architecture {options.architecture}` does not go with a folder: diffusers "
                "writes the architecture into it. Leave the option out."
            )
        convert_folder(options.weights, options.out)
    elif options.weights.is_file():
        from hdiscovery.models.published import convert

        if options.architecture is None:
            raise ValueError(
                f"`--architecture` is needed for {options.weights}: published weights do not tell "
                "theirs. See --help for its values."
            )
        convert(options.weights, options.architecture, options.out)
    else:
        raise FileNotFoundError(
            f"`weights` {options.weights} is not a file, and no diffusers folder either."
        )
    print(f"wrote {options.out}")
