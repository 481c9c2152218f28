"""A frozen diffusers UNet: the chain with frozen layers against checkpointing and the plain loop.

Run it as it stands: ``python benchmarks/frozen_unet.py``. One process per memory reading; times are
of runs in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from vram_vs_M import environment

from chainograd import CheckpointedChain, meter

# (method, M for memory, what it is compared with)
READINGS = (
    ("checkpoint", 50), ("nodes", 50), ("nodes, frozen", 50),
    ("plain loop", 4), ("graph", 4), ("graph, frozen", 4),
)  # fmt: skip
RATIOS = (("nodes", "checkpoint"), ("nodes, frozen", "checkpoint"), ("graph, frozen", "plain loop"))


def workload(M: int, device: str) -> Callable[[str], None]:
    """Return ``run(method)``: sample in M steps from 16 images of noise, and go back."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=32, block_out_channels=(32, 64, 64, 128), layers_per_block=2,
        down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4,
    ).requires_grad_(False).eval()  # fmt: skip
    torch.nn.Module.to(net, device)  # diffusers' own `to` hides its signature
    x_T = torch.randn(16, 3, 32, 32, device=device, requires_grad=True)

    def step(x: Tensor, i: int) -> Tensor:
        t = torch.full((len(x),), 999 - i, device=x.device)
        return x - 0.02 * net(x, t).sample

    def run(method: str) -> None:
        x: Any = x_T
        name, _, frozen = method.partition(", ")
        if name in ("nodes", "graph"):
            x = CheckpointedChain(step, M, plan=name, frozen="auto" if frozen else "off")(x)
        else:
            for i in range(M):
                x = (
                    checkpoint(step, x, i, use_reentrant=False)
                    if name == "checkpoint"
                    else step(x, i)
                )
        x.square().mean().backward()
        x_T.grad = None
        if x_T.is_cuda:
            torch.cuda.synchronize()

    return run


def memory(method: str, M: int, device: str) -> dict[str, Any]:
    """Return the peak of a second run."""
    run = workload(M, device)
    run(method)
    with meter(device) as reading:
        run(method)
    return {"method": method, "M": M, "peak_bytes": reading.peak_bytes}


def timing(device: str, pairs: int = 7, M: int = 4) -> dict[str, Any]:
    """Return seconds of runs of every method in turn, after one of each."""
    run = workload(M, device)
    seconds: dict[str, list[float]] = {method: [] for method, _ in READINGS}
    for _ in range(1 + pairs):
        for method in seconds:
            started = time.perf_counter()
            run(method)
            seconds[method].append(time.perf_counter() - started)
    return {"M": M, "seconds": {method: s[1:] for method, s in seconds.items()}}


def table(content: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table; those of time are medians over runs in turn."""
    memories, times = content["memory"], content["timing"]
    peak = {row["method"]: row["peak_bytes"] for row in memories}
    steps = {row["method"]: row["M"] for row in memories}
    lines = ["| chain | against | M | MiB | its MiB | memory | time |", "|---|---|" + "---:|" * 5]
    for mine, other in RATIOS:
        pairs = zip(times["seconds"][mine], times["seconds"][other], strict=True)
        lines.append(
            f"| {mine} | {other} | {steps[mine]} | {peak[mine] / 2**20:.1f} "
            f"| {peak[other] / 2**20:.1f} | {peak[mine] / peak[other]:.3f} "
            f"| {median(a / b for a, b in pairs):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=device)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        reading = (
            timing(options.device) if options.one == "timing"
            else memory(options.one, dict(READINGS)[options.one], options.device)
        )  # fmt: skip
        print(json.dumps(reading))
        return
    answers = []
    for what in (*dict(READINGS), "timing"):
        command = [sys.executable, __file__, "--one", what, "--device", options.device]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"measured {what}", file=sys.stderr)
    *memories, times = answers
    folder = Path(__file__).parent / "results" / torch.device(options.device).type
    out = options.out or folder / "frozen_unet.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {**environment(options.device), "command": "python benchmarks/frozen_unet.py"}
    content = {"environment": facts, "memory": memories, "timing": times}
    out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
