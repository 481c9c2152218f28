"""A guided diffusers loop with a multistep solver: the chain against the plain loop.

Run it as it stands: ``python benchmarks/diffusers_loop.py``. One process per memory reading; times
are of runs in turn in one process. Checkpointing each step is not among the ways: with this
scheduler it ends in an error.
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
from diffusers import (
    DPMSolverMultistepScheduler,  # pyright: ignore[reportPrivateImportUsage]
    UNet2DConditionModel,  # pyright: ignore[reportPrivateImportUsage]
)
from torch import Tensor
from vram_vs_M import environment

from chainograd import meter
from chainograd.adapters import diffusers_chain

WAYS: dict[str, dict[str, Any]] = {
    "plain loop": {},
    "chain": {},
    "chain, in turn": {"guidance": "in turn"},
    "chain, frozen": {"frozen": "auto"},
    "chain, in turn, frozen": {"guidance": "in turn", "frozen": "auto"},
}
STEPS = (5, 50)
READINGS = [
    (way, M) for way in WAYS for M in STEPS if way != "plain loop" or M < 50
]  # the plain loop's fifty graphs are ten times its five
SCALE = 5.0


def workload(M: int, device: str) -> Callable[[str], None]:
    """Return ``run(way)``: sample two latents with guidance in M steps, and go back."""
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
        if x_T.is_cuda:
            torch.cuda.synchronize()

    return run


def memory(way: str, M: int, device: str) -> dict[str, Any]:
    """Return the peak of a run, after one of two steps for first-call costs."""
    workload(2, device)(way)
    run = workload(M, device)
    with meter(device) as reading:
        run(way)
    return {"way": way, "M": M, "peak_bytes": reading.peak_bytes}


def timing(device: str, pairs: int = 5, M: int = 5) -> dict[str, Any]:
    """Return seconds of every way in turn, after one run of each."""
    run = workload(M, device)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(1 + pairs):
        for way, times in seconds.items():
            started = time.perf_counter()
            run(way)
            times.append(time.perf_counter() - started)
    return {"M": M, "seconds": {way: times[1:] for way, times in seconds.items()}}


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table; ratios of time are medians over runs in turn."""
    peaks = {(row["way"], row["M"]): row["peak_bytes"] for row in content["memory"]}
    seconds = content["timing"]["seconds"]
    few, many = STEPS
    lines = [
        f"| way | MiB, M = {few} | MiB, M = {many} | time, M = {few} |",
        "|---|---:|---:|---:|",
    ]
    for way in WAYS:
        pairs = zip(seconds[way], seconds["plain loop"], strict=True)
        shown = [f"{peaks[way, M] / 2**20:.1f}" if (way, M) in peaks else "" for M in STEPS]
        lines.append(f"| {way} | {shown[0]} | {shown[1]} | {median(a / b for a, b in pairs):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        reading = (
            timing(options.device) if options.one == ["timing"]
            else memory(options.one[0], int(options.one[1]), options.device)
        )  # fmt: skip
        print(json.dumps(reading))
        return
    answers = []
    for what in [*([way, str(M)] for way, M in READINGS), ["timing"]]:
        command = [sys.executable, __file__, "--device", options.device, "--one", *what]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"measured {' '.join(what)}", file=sys.stderr)
    *memories, times = answers
    folder = Path(__file__).parent / "results" / torch.device(options.device).type
    out = options.out or folder / "diffusers_loop.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {**environment(options.device), "command": "python benchmarks/diffusers_loop.py"}
    content = {"environment": facts, "memory": memories, "timing": times}
    out.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
