"""Let a diffusion model choose t_stop."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from hdiscovery.dm.files import DiffusionModel
    from hdiscovery.evaluate.t_stop import Distance

HELP = "let a diffusion model choose t_stop"
EXAMPLES = (
    "hdiscovery tstop MNIST32-small --preset MNIST32-400-20-32-5",
    "hdiscovery tstop dm.safetensors --features lpips          # the threshold is 0.275",
    "hdiscovery tstop MNIST32-small --features digits --data DIR --share 0.4",
    "hdiscovery train MNIST32-400-20-32-5 --t-stop 380          # the one that it chose",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("dm", help="weight file or shipped diffusion model")
    add(
        "--features",
        default="unet",
        metavar="NET",
        help="what measures: lpips, unet, digits, inception, or a .pt or .pt2 file",
    )
    add(
        "--threshold",
        type=float,
        metavar="D",
        help="least distance of the predicted x_0 from x_0 at t_stop; by default 0.275 for lpips",
    )
    add(
        "--share",
        type=float,
        metavar="R",
        help="the threshold as a share of the distance of two unrelated samples; by default 0.5 "
        "for all but lpips",
    )
    add("--samples", type=int, default=100)
    add("--steps", type=int, default=50, help="DDIM steps: t_stop is one of their times")
    add("--preset", help="show the t_stop of this preset beside it")
    add("--data", type=Path, help="folder of MNIST/raw, for the feature net digits")
    add(
        "--classifier",
        type=Path,
        metavar="FILE",
        help="where the feature net digits is kept; by default in --data",
    )
    add("--out", type=Path, default=Path("runs/tstop"), help="folder of tstop.png and tstop.json")
    add("--seed", type=int, default=4)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")  # fmt: skip


def run(options: Namespace) -> None:
    """Choose, draw the curve, and print the choice."""
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.files import load_dm
    from hdiscovery.evaluate.t_stop import LPIPS_THRESHOLD, choose_t_stop, draw_curve

    preset = None if options.preset is None else preset_t_stop(options.preset)
    threshold, share = options.threshold, options.share
    if threshold is None and share is None:
        threshold, share = (LPIPS_THRESHOLD, None) if options.features == "lpips" else (None, 0.5)
    dm = load_dm(options.dm, device=device_of(options.device))
    distance, about = distance_by(options, dm)
    chosen = choose_t_stop(
        dm, distance, features=about, threshold=threshold, share=share,
        num_samples=options.samples, num_steps=options.steps, seed=options.seed,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    RunFolder(options.out).write_json("tstop.json", {"dm": dm.name, **asdict(chosen)})
    page = draw_curve(chosen, options.out / "tstop.png", preset=preset)
    relative = chosen.threshold / chosen.unrelated
    print(f"t_stop = {chosen.t_stop}: the distance reaches {chosen.threshold:.4g} there, "
          f"{relative:.0%} of that of unrelated samples ({about['name']})")  # fmt: skip
    if preset is not None:
        there = chosen.at(preset)
        print(f"{options.preset} has t_stop = {preset}: the distance there is {there:.4g}, "
              f"{there / chosen.unrelated:.0%} of that of unrelated samples")  # fmt: skip
    print(f"wrote {page} and {options.out / 'tstop.json'}")


def distance_by(options: Namespace, dm: DiffusionModel) -> tuple[Distance, dict[str, Any]]:
    """Return the distance of a feature net, and what a report says of the net."""
    from hdiscovery.evaluate.features import feature_net, lpips_distance, perceptual_distance

    if options.features == "lpips":
        distance, sha256 = lpips_distance(next(dm.unet.parameters()).device)
        return distance, {"name": "lpips", "sha256": sha256}
    net = feature_net(options.features, dm, data=options.data, cache=options.classifier,
                      progress=partial(tqdm, desc="classifier of digits"))  # fmt: skip
    return partial(perceptual_distance, net), net.described()


def preset_t_stop(name: str) -> int:
    """Return the t_stop of a preset, whether or not its diffusion model is there.

    Raises:
        ValueError: If there is no such preset.
    """
    from hdiscovery.directions.recipe import from_preset

    return from_preset(name, dm="any").shift.t_stop
