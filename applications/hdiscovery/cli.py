"""The command line; ``hdiscovery --help`` lists its commands."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hdiscovery import commands
from hdiscovery.config import presets
from hdiscovery.models.adm_unet import TABLE_3

MENDABLE = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError, ImportError)


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["pretrain"]:  # its options are the fields of PretrainConfig
            commands.pretrain(arguments[1:])
            return 0
        options, rest = _parser().parse_known_args(arguments)
        if rest and options.run is not commands.train:  # whose options are the preset's fields
            raise ValueError(f"unknown options {rest}; see --help.")
        options.rest = rest
        options.run(options)
        return 0
    except SystemExit as stop:  # argparse and tyro: help was shown, or the error was
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("\nStopped. Continue with --resume.", file=sys.stderr)
        return 130
    except MENDABLE as error:
        print(f"hdiscovery: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hdiscovery", description="Find, measure and show directions in h-space."
    )
    add = parser.add_subparsers(required=True, metavar="COMMAND").add_parser
    train = add(
        "train", help="discover directions",
        description="Example: hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    )  # fmt: skip
    train.add_argument("preset", help=f"one of {', '.join(presets())}")
    train.add_argument("--out", type=Path, help="run folder; by default runs/PRESET")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.set_defaults(run=commands.train)

    for name, text, run in (
        ("evaluate", "measure how well directions are told apart", commands.evaluate),
        ("gallery", "write a page that shows the directions", commands.gallery),
    ):
        command = add(name, help=text, description=text)
        command.add_argument("folder", type=Path, metavar="RUN")
        command.add_argument("--pairs", type=int, default=512, help="pairs to measure RCA on")
        command.set_defaults(run=run)

    demo = add("demo", help="train, evaluate and show, in minutes")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--resume", action="store_true", help="continue the demo's run")
    demo.set_defaults(run=commands.demo)

    add("pretrain", help="train a diffusion model on MNIST (its own --help)")

    judge = add("judge", help="ask a classifier of real digits about a model's samples")
    judge.add_argument("dm", help="weight file or shipped diffusion model of MNIST")
    judge.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST/raw")
    judge.add_argument("--out", type=Path, default=Path("runs/judge"))
    judge.add_argument("--samples", type=int, default=500)
    judge.add_argument("--num-steps", type=int, default=20, help="DDIM steps")
    judge.set_defaults(run=commands.judge)

    convert = add(
        "convert", help="turn published weights or a diffusers folder into a model's file",
        description="Examples: hdiscovery convert ema.pt --architecture CelebAHQ128 --out "
        "dm.safetensors; hdiscovery convert ddpm-folder --out dm.safetensors",
    )  # fmt: skip
    convert.add_argument(
        "weights", type=Path,
        help="ADM's ema_*.pt, PDAE's .pt, or a folder that a diffusers pipeline with a UNet2DModel "
        "was saved to (unet/ and scheduler/)",
    )  # fmt: skip
    convert.add_argument(
        "--architecture", metavar="NAME|JSON",
        help=f"of a .pt file: one of {', '.join(TABLE_3)}, or a JSON file of UNetConfig's fields",
    )  # fmt: skip
    convert.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    convert.set_defaults(run=commands.convert)

    export = add(
        "export", help="turn a diffusion model into a folder that diffusers loads",
        description="Example: hdiscovery export MNIST32-small --out mnist; in Python then "
        "diffusers.DDIMPipeline.from_pretrained('mnist')",
    )  # fmt: skip
    export.add_argument("dm", help="weight file or shipped diffusion model")
    export.add_argument("--out", type=Path, required=True, help="the folder to write")
    export.set_defaults(run=commands.export)
    return parser


if __name__ == "__main__":
    sys.exit(main())
