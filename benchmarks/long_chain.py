"""DDPM in pixels with a thousand steps: where nodes live, and what more steps cost.

Run ``python benchmarks/long_chain.py``. The network is small, so nodes take most of the memory.
Each memory reading has its own process. Each time is of one run, after a run of ten steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measured import apart, default_device, note, results, save, seconds_of
from torch import Tensor, nn

from chainograd import CheckpointedChain, binomial, meter
from chainograd.samplers import DDPM, NoiseSchedule, SeededNoise, time_grid

WAYS = ("device", "host", "disk", "binomial, 30 nodes", "binomial, 10 nodes")
ON_CPU = tuple(way for way in WAYS if way != "host")  # on a CPU, the host is the device
STEPS = (100, 1000)


class Small(nn.Module):
    """A network of two convolutions that takes the time."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise."""
        return self.last(torch.tanh(self.first(x) + t[:, None, None, None] / 1000))


def reading(way: str, M: int, device: str, edge: int) -> dict[str, Any]:
    """Return the peak on the device, seconds and evaluations of a run."""
    torch.manual_seed(0)
    net = Small().to(device)
    x_T = torch.randn(4, 3, edge, edge, device=device)

    def run(M: int, folder: str) -> int:
        step = DDPM(net, NoiseSchedule.linear(), time_grid(M), noise=SeededNoise(0))
        options: dict[str, Any] = {}
        if way.startswith("binomial"):
            options["plan"] = binomial(M, slots=int(way.split()[1]))
        elif way != "device":
            options["store"] = "host" if way == "host" else Path(folder)
        chain = CheckpointedChain(step, M, **options)
        net.zero_grad()
        chain(x_T).square().mean().backward()
        return chain.plan.evaluations

    with tempfile.TemporaryDirectory() as folder:
        run(min(M, 10), folder)
        seconds = seconds_of(lambda: run(M, folder), device)
        with meter(device) as seen:
            evaluations = run(M, folder)
    return {"way": way, "M": M, "node_bytes": x_T.nbytes, "peak_bytes": seen.peak_bytes,
            "seconds": seconds, "evaluations": evaluations}  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table of peaks, evaluations and seconds."""
    lines = ["| nodes | M | MiB | evaluations | s | ms an evaluation |", "|---|" + "---:|" * 5]
    for row in content["readings"]:
        lines.append(
            f"| {row['way']} | {row['M']} | {row['peak_bytes'] / 2**20:.2f} "
            f"| {row['evaluations']} | {row['seconds']:.2f} "
            f"| {row['seconds'] / row['evaluations'] * 1e3:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--M", type=int, nargs="+", default=STEPS)
    parser.add_argument("--edge", type=int, default=32, help="pixels along an edge")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for way in ON_CPU if torch.device(options.device).type == "cpu" else WAYS:
        for M in options.M:
            rows.append(apart(reading, way, M, options.device, options.edge))
            note(f"{way}, M = {M}: {rows[-1]['seconds']:.1f} s")
    out = options.out or results("long_chain", options.device)
    print(table(save(out, options.device, {"readings": rows})))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
