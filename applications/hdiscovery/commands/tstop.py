"""Let a diffusion model choose t_stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Features, Model

if TYPE_CHECKING:
    from hdiscovery.dm.model import DiffusionModel
    from hdiscovery.evaluation.t_stop import Chosen, Distance

EXAMPLES = (
    "hdiscovery tstop MNIST32-small --preset MNIST32-400-20-32-5",
    "hdiscovery tstop dm.safetensors --features lpips          # the threshold is 0.275",
    "hdiscovery tstop MNIST32-small --features digits --data DIR --share 0.4",
    "hdiscovery train MNIST32-400-20-32-5 --t-stop 380          # the one that it chose",
)
RENAMED = {"--steps": "--sampling-steps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Let a diffusion model choose t_stop.

    Writes tstop.json, and tstop.png: the curve and the choice.

    Attributes:
        features: What measures distances: lpips, unet, digits, inception, or a .pt or .pt2 file.
        threshold: Least distance of the predicted x_0 from x_0 at t_stop; for lpips 0.275 unless
            it is given.
        share: The threshold as a share of the distance of two unrelated samples; for all but
            lpips 0.5 unless one of the two is given.
        samples: Samples that distances are averaged over.
        sampling_steps: DDIM steps from noise to an image: t_stop is one of their times.
        preset: Show the t_stop of this preset beside the choice.
        data: Folder that holds MNIST/raw, for the feature net digits.
        classifier: File of the classifier of digits; without it, the classifier is kept in data.
        out: Folder of the results.
        seed: Of the samples.
    """

    dm: Model
    features: Features = "unet"
    threshold: Annotated[float | None, arg(metavar="DISTANCE")] = None
    share: Annotated[float | None, arg(metavar="RATIO")] = None
    samples: int = 100
    sampling_steps: int = 50
    preset: str | None = None
    data: Annotated[Path | None, arg(metavar="DIR")] = None
    classifier: Annotated[Path | None, arg(metavar="FILE")] = None
    out: Path = Path("runs/tstop")
    seed: int = 4
    device: Device = "auto"


def run(options: Options) -> None:
    """Choose, draw the curve, and print the choice."""
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.open import load_dm
    from hdiscovery.evaluation.t_stop import draw_curve

    preset = None if options.preset is None else preset_t_stop(options.preset)
    dm = load_dm(options.dm, device=device_of(options.device))
    chosen, net = choose(options, dm)
    options.out.mkdir(parents=True, exist_ok=True)
    RunFolder(options.out).write_json("tstop.json", {"dm": dm.name, **asdict(chosen)})
    page = draw_curve(chosen, options.out / "tstop.png", preset=preset)
    of_unrelated = "of the distance of unrelated samples"
    relative = chosen.threshold / chosen.unrelated
    print(f"t_stop = {chosen.t_stop}: the distance reaches {chosen.threshold:.4g} there, "
          f"{relative:.0%} {of_unrelated} ({net})")  # fmt: skip
    if preset is not None:
        there = chosen.at(preset)
        print(f"{options.preset} has t_stop = {preset}: the distance there is {there:.4g}, "
              f"{there / chosen.unrelated:.0%} {of_unrelated}")  # fmt: skip
    print(f"wrote {page} and {options.out / 'tstop.json'}")


def choose(options: Options, dm: DiffusionModel) -> tuple[Chosen, str]:
    """Return the choice, and the name of the net that measured the distances."""
    from hdiscovery.evaluation.t_stop import LPIPS_THRESHOLD, choose_t_stop

    threshold, share = options.threshold, options.share
    if threshold is None and share is None:
        threshold, share = (LPIPS_THRESHOLD, None) if options.features == "lpips" else (None, 0.5)
    distance, about = distance_by(options, dm)
    chosen = choose_t_stop(
        dm, distance, features=about, threshold=threshold, share=share,
        num_samples=options.samples, num_steps=options.sampling_steps, seed=options.seed,
    )  # fmt: skip
    return chosen, about["name"]


def distance_by(options: Options, dm: DiffusionModel) -> tuple[Distance, dict[str, Any]]:
    """Return the distance of a feature net, and what a report says of the net."""
    from functools import partial

    from hdiscovery.evaluation.features import feature_net, lpips_distance, perceptual_distance

    if options.features == "lpips":
        distance, sha256 = lpips_distance(next(dm.unet.parameters()).device)
        return distance, {"name": "lpips", "sha256": sha256}
    net = feature_net(options.features, dm, data=options.data, cache=options.classifier,
                      progress=bars("classifier of digits"))  # fmt: skip
    return partial(perceptual_distance, net), net.described()


def preset_t_stop(name: str) -> int:
    """Return the t_stop of a preset, whether or not its diffusion model is there.

    Raises:
        ValueError: If there is no such preset.
    """
    from hdiscovery.directions.recipe import from_preset

    return from_preset(name, dm="any").shift.t_stop
