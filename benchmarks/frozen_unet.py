"""A frozen diffusers UNet: frozen layers compared with checkpointing and the plain loop.

Run ``python benchmarks/frozen_unet.py``. Each memory reading has its own process. Timed runs
alternate between the methods in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from measured import apart, default_device, each_apart, in_turn, ratio, results, save
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chainograd import CheckpointedChain, meter

# (method, M for memory)
READINGS = (
    ("checkpoint", 50), ("nodes, frozen", 50),
    ("plain loop", 4), ("graph", 4), ("graph, frozen", 4),
)  # fmt: skip
RATIOS = (("nodes, frozen", "checkpoint"), ("graph, frozen", "plain loop"))


def workload(M: int, device: str) -> Callable[[str], None]:
    """Return ``run(method)``: sample in M steps from 16 images of noise, and run backward."""
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

    return run


def memory(method: str, M: int, device: str) -> dict[str, Any]:
    """Return the peak of a run, after a run of two steps that pays first-call costs."""
    workload(2, device)(method)
    run = workload(M, device)
    with meter(device) as reading:
        run(method)
    return {"method": method, "M": M, "peak_bytes": reading.peak_bytes}


def timing(device: str, pairs: int = 15, M: int = 4) -> dict[str, Any]:
    """Return seconds of alternating runs of every method, after one run of each."""
    run = workload(M, device)
    runs = {method: partial(run, method) for method, _ in READINGS}
    return {"M": M, "seconds": in_turn(runs, pairs, device)}


def table(content: dict[str, Any]) -> str:
    """Return the ratios as a Markdown table; time ratios are medians of alternating runs."""
    memories, times = content["memory"], content["timing"]
    peak = {row["method"]: row["peak_bytes"] for row in memories}
    steps = {row["method"]: row["M"] for row in memories}
    lines = ["| chain | against | M | MiB | its MiB | memory | time |", "|---|---|" + "---:|" * 5]
    for mine, other in RATIOS:
        lines.append(
            f"| {mine} | {other} | {steps[mine]} | {peak[mine] / 2**20:.1f} "
            f"| {peak[other] / 2**20:.1f} | {peak[mine] / peak[other]:.3f} "
            f"| {ratio(times['seconds'], mine, other):.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device: str = options.device
    memories = each_apart(memory, [(*reading, device) for reading in READINGS], device)
    out = options.out or results("frozen_unet", device)
    content = save(out, device, {"memory": memories, "timing": apart(timing, device)})
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
