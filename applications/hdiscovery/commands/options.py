"""Options that several commands have, each with one name and one help; and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

Run = Annotated[
    Positional[Path], arg(metavar="RUN", help="A run's folder, or the name of a shipped run.")
]
Model = Annotated[
    Positional[str],
    arg(metavar="MODEL", help="A diffusion model: its file, its folder, or a shipped one's name."),
]
Switch = FlagCreatePairsOff[bool]
Overwrite = Annotated[Switch, arg(help="Replace files that are there.")]
Device = Annotated[
    str,
    arg(metavar="NAME", help="Where to compute: auto (CUDA if there is one), cpu, cuda, cuda:1, …"),
]
BatchSize = Annotated[int, arg(help="Images at once.")]
Shifts = Annotated[
    int, arg(help="Strengths from -S to S, an odd number, so that s = 0 is in the middle.")
]
Images = Annotated[
    UseAppendAction[tuple[tuple[Path, ...], ...]],
    arg(metavar="PATH", help="Image files, folders of them, or .safetensors files of `invert`."),
]
InversionSteps = Annotated[int, arg(help="DDIM steps from an image to its noise.")]
SamplingSteps = Annotated[int, arg(help="DDIM steps from noise to an image.")]
Data = Annotated[
    Path | None,
    arg(metavar="DIR", help="Real images: a folder that holds MNIST/raw, or a folder of images."),
]
Features = Annotated[
    str,
    arg(metavar="NET", help="What looks at images: unet, digits, inception, a .pt or a .pt2 file."),
]

# An option is called by its own name, whatever group it is in.
MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


def parsed(
    options: Any,
    words: Sequence[str],
    *,
    prog: str,
    examples: Sequence[str],
    default: Any = tyro.MISSING_NONPROP,
    markers: Sequence[Any] = MARKERS,
) -> Any:
    """Return a command's options; help, and what cannot be read, are shown as tyro shows them.

    Args:
        options: The dataclass of the options, or a union of them for subcommands.
        words: The command line after the command's name.
        prog: How the command is called.
        examples: Lines that end the help.
        default: Options whose values hold where the words say nothing.
        markers: How tyro names the options.

    Raises:
        SystemExit: With 0 after the help was shown, with 2 after an error was.
    """
    try:
        return tyro.cli(options, prog=prog, args=words, default=default, config=markers)
    except SystemExit as stop:
        if not stop.code:
            print("\n".join(["examples:", *(f"  {line}" for line in examples)]))
        raise


def given_images(given: Sequence[Sequence[Path]]) -> list[Path]:
    """Return the paths of ``--image``, which is repeated and takes several paths each time.

    Raises:
        ValueError: If there are none.
    """
    paths = [path for group in given for path in group]
    if not paths:
        raise ValueError(
            "No image is given. Pass `--image PATH`: image files, folders of them, or "
            ".safetensors files of `hdiscovery invert`."
        )
    return paths
