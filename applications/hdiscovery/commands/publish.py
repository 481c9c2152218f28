"""Name a run's directions, and write them into a small folder or one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Overwrite

EXAMPLES = (
    "hdiscovery publish runs/a --label 3=thicker 7=slanted   # names two directions",
    "hdiscovery publish runs/a --label                       # shows what is known of each",
    "hdiscovery publish runs/a --out digits                  # a folder of a few MB",
    "hdiscovery publish digits --to file                     # digits/directions.safetensors",
    "hdiscovery publish digits --to file --no-mean --no-calibration --out small.safetensors",
    "hdiscovery edit digits --image photo.png --direction 3",
)
RENAMED = {"--features": "--calibration-features"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Name a run's directions, and write them into a small folder or one file.

    A folder has the shift block, the reconstructor, and what was measured of the run: every
    command but train takes it as it takes a run. A file has the mean and the global directions
    and strengths of equal change, and is enough to edit with.

    Attributes:
        source: A run's folder; to name directions, a directions.safetensors as well.
        label: Names of directions, which are written into the source; an empty text takes a name
            away. Without a name, shows what is known of each direction.
        to: What is written.
        out: The folder or file to write; a file is by default directions.safetensors in the
            run's folder.
        dtype: Precision of what is written.
        samples: Samples that the means of a file are over.
        mean: A file without the mean directions has the global ones alone.
        calibration: Whether a file has strengths of equal change, which takes as long as the
            means.
        calibration_samples: Samples to measure these strengths on.
        calibration_features: What change is measured by.
        seed: Of the samples.
    """

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    label: Annotated[tuple[str, ...] | None, arg(metavar="[K=TEXT ...]")] = None
    to: Literal["folder", "file"] | None = None
    out: Path | None = None
    dtype: Literal["float16", "float32"] = "float16"
    samples: int = 20
    mean: FlagCreatePairsOff[bool] = True
    calibration: FlagCreatePairsOff[bool] = True
    calibration_samples: int = 8
    calibration_features: Literal["encoder", "pixels"] = "encoder"
    seed: int = 0
    device: Device = "auto"
    overwrite: Overwrite = False


def run(options: Options) -> None:
    """Name, then write, and say how large it is."""
    from hdiscovery.api.publish import label

    if options.label is not None:
        print("\n".join(label(options.source, options.label)))
    if options.to == "file":
        _write_file(options)
    elif options.out is not None:
        _write_folder(options, options.out)
    elif options.label is None or options.to == "folder":
        raise ValueError(
            "Nothing says what to publish. Name a folder by `--out FOLDER`, write one file by "
            "`--to file`, or name directions by `--label K=TEXT`."
        )


def _write_folder(options: Options, out: Path) -> None:
    import torch

    from hdiscovery.directions.publish import publish
    from hdiscovery.directions.run_folder import RunFolder

    dtype = getattr(torch, options.dtype)
    published = publish(RunFolder.open(options.source), out, dtype=dtype)
    size = sum(path.stat().st_size for path in published.path.iterdir())
    print(f"wrote {published.path}: {size / 1e6:.1f} MB")


def _write_file(options: Options) -> None:
    from hdiscovery.api.publish import publish_file

    path = publish_file(
        options.source, options.out, samples=options.samples, mean=options.mean,
        calibration_samples=options.calibration_samples if options.calibration else 0,
        calibration_features=options.calibration_features, seed=options.seed,
        dtype=options.dtype, overwrite=options.overwrite, device=options.device, progress=bars,
    )  # fmt: skip
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")
