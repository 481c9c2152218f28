"""Inspect a model's file or folder, and turn it into another format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hdiscovery.commands.answers import MOST_IMAGES, AnswerOptions, reader
from hdiscovery.commands.options import Device, Switch

EXAMPLES = (
    "hdiscovery convert ema.pt --inspect                     # what it is, what it does not tell",
    "hdiscovery convert ema.pt --inspect --image-size 256 --data photos    # which answers fit",
    "hdiscovery convert ema.pt --image-size 256 --head-channels 64 --attention-order legacy "
    "--schedule linear --data photos --out dm.safetensors",
    "hdiscovery convert ema.pt --architecture CelebAHQ128 --out dm.safetensors",
    "hdiscovery convert ddpm-folder --out dm.safetensors",
    "hdiscovery convert MNIST32-small --to diffusers --out mnist",
    "# then, in Python: diffusers.DDIMPipeline.from_pretrained('mnist')",
)
RENAMED = {"--images": "--data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Inspect a diffusion model's file or folder, and turn it into another format.

    Attributes:
        model: ADM's ema_*.pt or model*.pt, PDAE's .pt, a folder of a diffusers pipeline with a
            UNet2DModel (unet/ and scheduler/), a model's file, or a shipped model's name.
        inspect: Say what the model is, what its file does not tell, and which answers fit; write
            nothing.
        to: Write a model's file, or a folder that diffusers loads.
        out: The .safetensors file or the folder to write.
        architecture: In place of the answers below: CelebAHQ128, AFHQ128, Anime64, MNIST32, or a
            JSON file with the fields of UNetConfig.
        data: A folder of images like those that the model was trained on. Its noise prediction is
            measured on up to 16 of them, which tells wrong answers.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    inspect: Switch = False
    to: Literal["file", "diffusers"] = "file"
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    architecture: Annotated[str | None, arg(metavar="NAME|JSON")] = None
    data: Annotated[Path | None, arg(metavar="DIR")] = None
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    device: Device = "auto"


def run(options: Options) -> None:
    """Say what a model is, or write it in another format."""
    if options.inspect:
        _inspect(options)
        return
    if options.out is None:
        raise ValueError(
            "Nothing says where to write the model. Pass `--out PATH`, or `--inspect` to see what "
            f"{options.model} is."
        )
    write = _to_diffusers if options.to == "diffusers" else _to_file
    write(options, options.out)
    print(f"wrote {options.out}")


def _inspect(options: Options) -> None:
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.inspection import inspect

    device, answers = device_of(options.device), options.answers.answers()
    for line in inspect(options.model, answers, reader(options.data), device=device):
        print(line, flush=True)


def _to_diffusers(options: Options, out: Path) -> None:
    from hdiscovery.dm.export.diffusers_folder import write_folder
    from hdiscovery.dm.open import load_dm

    _refuse_answers(options, "`--to diffusers`: it starts from a model, which says all of it")
    write_folder(load_dm(options.model), out)


def _to_file(options: Options, out: Path) -> None:
    from hdiscovery.dm.conversion import convert
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.export.diffusers_folder import convert_folder

    path = Path(options.model)
    if path.is_dir():
        _refuse_answers(options, "a folder: diffusers writes the architecture into it")
        convert_folder(path, out)
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file, and no diffusers folder either.")
    convert(
        path, out, architecture=options.architecture, answers=options.answers.answers(),
        images=reader(options.data), device=device_of(options.device),
    )  # fmt: skip
    if options.data is None:
        print(
            f"The answers were not checked. `--data DIR`, a folder of up to {MOST_IMAGES} images "
            "like those that the model was trained on, compares them with other answers."
        )


def _refuse_answers(options: Options, what: str) -> None:
    """Refuse options that the model leaves no room for."""
    given = options.answers.answers().options()
    for option, value in (("--architecture", options.architecture), ("--data", options.data)):
        given += f" {option} {value}" if value is not None else ""
    if given:
        raise ValueError(f"`{given.strip()}` does not go with {what}. Leave it out.")
