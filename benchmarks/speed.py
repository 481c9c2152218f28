"""Time of the default plan against the plain loop and checkpointing; what the engine itself takes.

Run it as it stands: ``python benchmarks/speed.py``. What is compared runs in turn in one process;
ratios are medians over pairs of runs.

A step takes F forward and B backward, both measured here. The plain loop takes M (F + B), the
default plan (2M - 1) F + M B: at most (2F + B) / (F + B) of it.
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
from measured import apart, default_device, in_turn, ratio, results, save, seconds_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chainograd import CheckpointedChain

Step = Callable[[Tensor, int], Tensor]
BATCH = 4
METHODS = ("plain loop", "checkpoint", "nodes")


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
    """Sample in M steps and go back."""
    if method == "nodes":
        y = CheckpointedChain(step, M)(x)
    else:
        y = x
        for i in range(M):
            again = method == "checkpoint"
            y = checkpoint(step, y, i, use_reentrant=False) if again else step(y, i)
    y.square().mean().backward()


def step_costs(step: Step, x: Tensor, device: str, repeats: int) -> dict[str, float]:
    """Return F and B: medians of a step's forward pass without a graph and of its backward."""
    forward, backward = [], []
    for _ in range(1 + repeats):
        with torch.no_grad():
            forward.append(seconds_of(partial(step, x, 0), device))
        loss = step(x, 0).square().mean()
        backward.append(seconds_of(loss.backward, device))
    return {"F": median(forward[1:]), "B": median(backward[1:])}


def compared(step: Step, x: Tensor, M: int, device: str, pairs: int) -> dict[str, Any]:
    """Return seconds of every method in turn, after one run of each."""
    runs = {method: partial(run, method, step, x, M) for method in METHODS}
    seconds = in_turn(runs, pairs, device)
    return {"M": M, **step_costs(step, x, device, pairs), "seconds": seconds}


def overhead(device: str, M: int = 200, pairs: int = 25) -> dict[str, Any]:
    """Return microseconds a step of a chain whose step is one multiplication, and of its loop."""
    w = torch.ones((), device=device, requires_grad=True)
    x = torch.ones(4, device=device)
    found = compared(lambda x, i: w * x, x, M, device, pairs)["seconds"]
    return {"M": M, "microseconds": {
        method: median(times) / M * 1e6 for method, times in found.items()
    }}  # fmt: skip


def with_unet(trainable: bool, pairs: int, device: str) -> dict[str, Any]:
    """Return what ten steps of the UNet cost, and their seconds by every method."""
    step, x = unet_step(device, trainable=trainable)
    return compared(step, x, 10, device, pairs)


def bound(row: dict[str, Any]) -> float:
    """Return (2F + B) / (F + B)."""
    return (2 * row["F"] + row["B"]) / (row["F"] + row["B"])


def table(content: dict[str, Any]) -> str:
    """Return two Markdown tables: whole runs, and the engine alone."""
    lines = [
        "| step | M | F (ms) | B (ms) | chain : plain loop | (2F+B)/(F+B) | chain : checkpoint |",
        "|---|" + "---:|" * 6,
    ]
    for name, row in content["runs"].items():
        lines.append(
            f"| {name} | {row['M']} | {row['F'] * 1e3:.1f} | {row['B'] * 1e3:.1f} "
            f"| {ratio(row['seconds'], 'nodes', 'plain loop'):.3f} | {bound(row):.3f} "
            f"| {ratio(row['seconds'], 'nodes', 'checkpoint'):.3f} |"
        )
    own = content["overhead"]["microseconds"]
    lines += [
        "",
        "| one multiplication as a step | µs a step, forward and backward |",
        "|---|---:|",
        *(f"| {method} | {own[method]:.0f} |" for method in METHODS),
        f"| overhead of the engine: nodes - plain loop | {own['nodes'] - own['plain loop']:.0f} |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--pairs", type=int, default=5, help="runs of each method")
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
