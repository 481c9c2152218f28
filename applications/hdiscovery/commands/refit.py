"""Fit a new reconstructor to the pairs of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Switch

EXAMPLES = (
    "hdiscovery refit runs/a",
    "hdiscovery refit runs/a --passes 16 --learning-rate 1e-3",
    "hdiscovery refit runs/a --warm-start                     # what it has learnt stays",
    "hdiscovery train MNIST32-demo --out runs/a --resume --steps 2000",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Fit a reconstructor to all pairs in a run's buffer, and let the run go on with it.

    Attributes:
        run: A run's folder.
        passes: How often each pair is seen.
        batch_size: Pairs an update.
        learning_rate: Learning rate at the start; it falls to 0.
        weight_decay: Weight decay of AdamW.
        label_smoothing: Share of a target that is spread over all k.
        warm_start: Begin with the run's own reconstructor, not with a new one.
        reconstructor: Kind of the new one; without it, the run's kind.
        scale: Make the directions so many times as strong before; their pairs serve on.
        autocast: Precision of the fit.
        seed: Of the new reconstructor and of the batches.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    passes: int = 8
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    warm_start: Switch = False
    reconstructor: Literal["lenet", "resnet18", "difference", "deep-difference"] | None = None
    scale: float = 1.0
    autocast: Literal["off", "bf16"] = "off"
    seed: int = 1
    device: Device = "auto"


def run(options: Options) -> None:
    """Fit, write the checkpoint, and say what the new reconstructor knows."""
    from hdiscovery.directions.run_folder import RunFolder
    from hdiscovery.dm.device import device_of
    from hdiscovery.refit import refit

    found = refit(
        RunFolder.open(options.run), passes=options.passes, batch_size=options.batch_size,
        learning_rate=options.learning_rate, weight_decay=options.weight_decay,
        label_smoothing=options.label_smoothing, warm_start=options.warm_start,
        reconstructor=options.reconstructor, scale=options.scale, autocast=options.autocast,
        seed=options.seed, device=device_of(options.device), progress=bars("updates"),
    )  # fmt: skip
    print(
        f"knows k of {found.test.rca:.3f} ± {found.test.standard_error:.3f} of {found.test.pairs} "
        f"pairs held out, of {found.train.rca:.3f} of those it was trained on"
    )
