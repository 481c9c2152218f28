"""Train, evaluate and show, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hdiscovery.commands.bars import bar, bars
from hdiscovery.commands.options import Device, Switch

EXAMPLES = ("hdiscovery demo", "hdiscovery demo --resume")
PRESET = "MNIST32-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Train on the shipped diffusion model of digits, evaluate, and show, in minutes.

    Attributes:
        out: The run's folder.
        resume: Continue the demo's run.
    """

    out: Path = Path("runs/demo")
    resume: Switch = False
    device: Device = "auto"


def run(options: Options) -> None:
    """Train, evaluate, show, and print the figures."""
    from hdiscovery.api.gallery import gallery, gallery_of_shipped
    from hdiscovery.api.train import train
    from hdiscovery.dm.autocast import fast_mode
    from hdiscovery.dm.device import device_of

    device = device_of(options.device)
    fields = {} if options.resume else {"autocast": fast_mode(device)}
    run = train(
        PRESET, options.out, resume=options.resume, device=options.device, watch=bar,
        progress=bars, **fields,
    )  # fmt: skip
    page = gallery(run, pairs=512, device=options.device, progress=bars)
    others = gallery_of_shipped(run, device=options.device, progress=bars)
    print("\n".join(figures(run)))
    print(f"open {page.resolve()}")
    for other in others:
        print(f"and, of a longer run, {other.resolve()}")


def figures(path: Path) -> list[str]:
    """Return what the training came to, a line each."""
    from hdiscovery.directions.config import run_config
    from hdiscovery.directions.run_folder import RunFolder

    run = RunFolder(path)
    shift, rca, last = run_config(run).shift, run.read_json("rca.json"), list(run.records())[-10:]
    L_G = sum(record["L_G"] for record in last) / len(last)
    return [
        f"L_G over the last {len(last)} steps   {L_G:.3f}   (ln 2 = 0.693)",
        f"shift error                {rca['shift_error']:.2f}    (S/2 = {shift.S / 2:g})",
        f"RCA on {rca['pairs']} pairs           {rca['rca']:.2f}    (chance = {1 / shift.K:g})",
    ]
