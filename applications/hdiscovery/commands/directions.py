"""Write a run's mean and global directions into a file of their own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hdiscovery.commands.invert import add_common_options, refuse_existing

HELP = "write a run's mean and global directions into one file"
EXAMPLES = (
    "hdiscovery directions runs/a",
    "hdiscovery directions runs/a --no-mean --no-calibration --out small.safetensors",
    "hdiscovery edit runs/a/directions.safetensors --image photo.png --direction 3",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("--samples", type=int, default=20, help="samples the means are over")
    parser.add_argument("--seed", type=int, default=0, help="of these samples")
    parser.add_argument("--no-mean", action="store_true", help="store the global directions alone")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument(
        "--no-calibration", action="store_true", help="do not measure strengths of equal change"
    )
    parser.add_argument(
        "--calibration-samples", type=int, default=8, help="samples to measure these on"
    )
    parser.add_argument(
        "--features", choices=("encoder", "pixels"), default="encoder",
        help="what change is measured by: the diffusion model's encoder, or pixels",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="by default RUN/directions.safetensors")
    add_common_options(parser)


def run(options: Namespace) -> None:
    """Measure, say the size, write."""
    import torch

    from chainograd.samplers import time_grid
    from hdiscovery.directions.portable import PortableDirections, save_directions
    from hdiscovery.directions.shipped import located, own_run
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.walk import draw_noise
    from hdiscovery.editing.calibration import calibrate
    from hdiscovery.editing.distance import build_features
    from hdiscovery.editing.means import measure_means
    from hdiscovery.editing.source import FILE, open_run_source

    folder = own_run(options.folder).path if options.out is None else located(options.folder)
    out = options.out or folder / FILE
    refuse_existing([out], options.overwrite)
    source = open_run_source(folder, device=device_of(options.device))
    about, dm, dtype = source.about, source.dm, getattr(torch, options.dtype)

    steps = 0 if options.no_mean else len(about.times)
    h = torch.Size(dm.unet.h_shape).numel()
    size = about.K * (steps + 1) * h * dtype.itemsize
    print(
        f"{about.K} directions, h of {' x '.join(map(str, dm.unet.h_shape))}, {steps} steps of "
        f"means and the global one in {options.dtype}: {size / 1e6:.1f} MB"
    )
    grid = time_grid(about.M, dm.schedule.num_train_steps, convention=about.grid)
    means = measure_means(
        dm, source.directions, draw_noise(dm, options.samples, options.seed), grid, K=about.K,
        t_stop=about.t_stop, dtype=dtype,
        progress=partial(tqdm, desc="means", total=len(about.times)),
    )  # fmt: skip
    about = replace(about, samples=options.samples, seed=options.seed)
    if not options.no_calibration:
        features = build_features(options.features, dm)
        x_T = draw_noise(dm, options.calibration_samples, options.seed)
        calibration = calibrate(source, features, x_T, progress=partial(tqdm, desc="calibration"))
        about = replace(about, calibration=calibration)
    mean = None if options.no_mean else means.mean
    save_directions(out, PortableDirections(about, means.global_, mean))
    print(f"wrote {out}")
