"""A guided diffusers loop with a multistep solver: the chain compared with the plain loop.

Run ``python benchmarks/diffusers_loop.py``. Each memory reading has its own process. Timed runs
alternate between the methods in one process. Checkpointing each step is not included, because it
raises an error with this scheduler.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from measured import apart, default_device, each_apart, in_turn, ratio, results, save
from torch import Tensor

from chainograd import meter
from chainograd.adapters import diffusers_chain

WAYS: dict[str, dict[str, Any]] = {
    "plain loop": {},
    "chain": {"frozen": "off"},
    "chain, in turn": {"guidance": "in turn", "frozen": "off"},
    "chain, frozen": {"frozen": "auto"},
    "chain, in turn, frozen": {"guidance": "in turn", "frozen": "auto"},
}
STEPS = (5, 20)
READINGS = [
    (way, M) for way in WAYS for M in STEPS if way != "plain loop" or M < 20
]  # the plain loop's memory for M = 20 is four times that for M = 5
SCALE = 5.0


def workload(M: int, device: str) -> Callable[[str], None]:
    """Return ``run(way)``: sample two latents with guidance in M steps, and run backward."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        16, 4, 4, block_out_channels=(32, 64, 128), layers_per_block=2, cross_attention_dim=64,
        attention_head_dim=16, norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False).eval()  # fmt: skip
    torch.nn.Module.to(unet, device)  # diffusers' own `to` hides its signature
    x_T = torch.randn(2, 4, 16, 16, device=device, requires_grad=True)
    cond, uncond = (torch.randn(2, 8, 64, device=device) for _ in range(2))

    def plain() -> Tensor:
        x, scheduler = x_T, DPMSolverMultistepScheduler()
        scheduler.set_timesteps(M, device=device)
        for t in scheduler.timesteps:
            both = unet(torch.cat([x, x]), t, torch.cat([uncond, cond])).sample
            e_u, e_c = both.chunk(2)
            x = scheduler.step(e_u + SCALE * (e_c - e_u), t, x, return_dict=False)[0]
        return x

    def run(way: str) -> None:
        if way == "plain loop":
            x = plain()
        else:
            scheduler = DPMSolverMultistepScheduler()
            chain = diffusers_chain(unet, scheduler, M, guidance_scale=SCALE, **WAYS[way])
            x = chain(x_T, cond=cond, uncond=uncond)
        x.square().mean().backward()
        x_T.grad = None

    return run


def memory(way: str, M: int, device: str) -> dict[str, Any]:
    """Return the peak of a run, after a run of two steps that pays first-call costs."""
    workload(2, device)(way)
    run = workload(M, device)
    with meter(device) as reading:
        run(way)
    return {"way": way, "M": M, "peak_bytes": reading.peak_bytes}


def timing(device: str, pairs: int = 3, M: int = 5) -> dict[str, Any]:
    """Return seconds of alternating runs of every method, after one run of each."""
    run = workload(M, device)
    runs = {way: partial(run, way) for way in WAYS}
    return {"M": M, "seconds": in_turn(runs, pairs, device)}


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table; time ratios are medians of alternating runs."""
    peaks = {(row["way"], row["M"]): row["peak_bytes"] for row in content["memory"]}
    seconds = content["timing"]["seconds"]
    few, many = STEPS
    lines = [
        f"| way | MiB, M = {few} | MiB, M = {many} | time, M = {few} |",
        "|---|---:|---:|---:|",
    ]
    for way in WAYS:
        shown = [f"{peaks[way, M] / 2**20:.1f}" if (way, M) in peaks else "" for M in STEPS]
        lines.append(
            f"| {way} | {shown[0]} | {shown[1]} | {ratio(seconds, way, 'plain loop'):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device: str = options.device
    memories = each_apart(memory, [(*reading, device) for reading in READINGS], device)
    out = options.out or results("diffusers_loop", device)
    content = save(out, device, {"memory": memories, "timing": apart(timing, device)})
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
