"""Time of the default plan, the plain loop and checkpointing, and the engine's own time.

Run ``python benchmarks/speed.py``. Runs alternate between the methods in one process, and ratios
are medians over pairs of runs.

A step takes F forward and B backward; both are measured in the same alternation. The plain loop
takes M (F + B), and the default plan takes (2M - 1) F + M B, at most (2F + B) / (F + B) times as
long.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from measured import apart, default_device, in_turn, ratio, results, save
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chainograd import CheckpointedChain

Step = Callable[[Tensor, int], Tensor]
BATCH = 4
METHODS = ("plain loop", "nodes", "checkpoint")
PARTS = ("forward", "step by step")  # M F, and M (F + B) with each step's backward pass at once


def unet_step(device: str, *, trainable: bool) -> tuple[Step, Tensor]:
    """Return a step of a small diffusion UNet, and the noise it starts from."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=32, block_out_channels=(32, 64, 64, 128), layers_per_block=2,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    ).requires_grad_(trainable).eval()  # fmt: skip
    torch.nn.Module.to(net, device)  # diffusers' own `to` hides its signature

    def step(x: Tensor, i: int) -> Tensor:
        t = torch.full((len(x),), 999 - i, device=x.device)
        return x - 0.02 * net(x, t).sample

    return step, torch.randn(BATCH, 3, 32, 32, device=device, requires_grad=True)


def run(method: str, step: Step, x: Tensor, M: int) -> None:
    """Sample in M steps and run backward."""
    if method == "nodes":
        y = CheckpointedChain(step, M)(x)
    else:
        y = x
        for i in range(M):
            again = method == "checkpoint"
            y = checkpoint(step, y, i, use_reentrant=False) if again else step(y, i)
    y.square().mean().backward()


def run_steps(part: str, step: Step, x: Tensor, M: int) -> None:
    """Run M steps without graphs, or run each step forward and backward at once."""
    with torch.set_grad_enabled(part != "forward"):
        for i in range(M):
            x = x.detach().requires_grad_()
            y = step(x, i)
            if y.requires_grad:
                y.square().mean().backward()
            x = y


def compared(step: Step, x: Tensor, M: int, device: str, pairs: int) -> dict[str, Any]:
    """Return seconds of alternating runs of all methods and parts, after one run of each."""
    runs = {method: partial(run, method, step, x, M) for method in METHODS}
    runs |= {part: partial(run_steps, part, step, x, M) for part in PARTS}
    return {"M": M, "seconds": in_turn(runs, pairs, device)}


def overhead(device: str, M: int = 200, pairs: int = 100) -> dict[str, Any]:
    """Return microseconds per step of a chain whose step is one multiplication, and of its loop.

    Other work on the machine can only lengthen such short times. The smallest time is therefore the
    time of the code itself; the median is the time as it was here.
    """
    w = torch.ones((), device=device, requires_grad=True)
    x = torch.ones(4, device=device)
    runs = {method: partial(run, method, lambda x, i: w * x, x, M) for method in METHODS}
    return {"M": M, "microseconds": {
        method: {"least": min(times) / M * 1e6, "median": median(times) / M * 1e6}
        for method, times in in_turn(runs, pairs, device).items()
    }}  # fmt: skip


def with_unet(trainable: bool, pairs: int, device: str) -> dict[str, Any]:
    """Return F, B and the seconds of every method for ten steps of the UNet."""
    step, x = unet_step(device, trainable=trainable)
    return compared(step, x, 10, device, pairs)


def step_costs(row: dict[str, Any]) -> tuple[float, float]:
    """Return F and B in milliseconds."""
    F, both = (median(row["seconds"][part]) / row["M"] * 1e3 for part in PARTS)
    return F, both - F


def table(content: dict[str, Any]) -> str:
    """Return two Markdown tables: whole runs, and the engine's own time."""
    lines = [
        "| step | M | F (ms) | B (ms) | chain : plain loop | (2F+B)/(F+B) | chain : checkpoint |",
        "|---|" + "---:|" * 6,
    ]
    for name, row in content["runs"].items():
        (F, B), seconds = step_costs(row), row["seconds"]
        lines.append(
            f"| {name} | {row['M']} | {F:.1f} | {B:.1f} "
            f"| {ratio(seconds, 'nodes', 'plain loop'):.3f} | {1 + ratio(seconds, *PARTS):.3f} "
            f"| {ratio(seconds, 'nodes', 'checkpoint'):.3f} |"
        )
    own = content["overhead"]["microseconds"]
    above = {which: own["nodes"][which] - own["plain loop"][which] for which in ("least", "median")}
    lines += [
        "",
        "| one multiplication as a step | µs a step, forward and backward: least | median |",
        "|---|---:|---:|",
        *(f"| {method} | {own[method]['least']:.0f} | {own[method]['median']:.0f} |"
          for method in METHODS),
        "| overhead of the engine: nodes - plain loop "
        f"| {above['least']:.0f} | {above['median']:.0f} |",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--pairs", type=int, default=31, help="runs of each method")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device: str = options.device
    out: Path = options.out or results("speed", device)
    runs = {
        name: apart(with_unet, trainable, options.pairs, device)
        for name, trainable in (("UNet, trainable", True), ("UNet, frozen weights", False))
    }
    content = save(out, device, {"runs": runs, "overhead": apart(overhead, device)})
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
