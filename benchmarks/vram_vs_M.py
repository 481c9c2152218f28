"""Figure 4: peak memory of training through the sampler against M, plain loop and chain.

Run it as it stands: ``python benchmarks/vram_vs_M.py``. One process per reading; peaks come from
the allocator on CUDA and from ``chainograd.meter()`` elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hdiscovery.directions.recipe import from_preset
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.training.algorithm1 import Objective
from measured import apart, default_device, each_apart, in_turn, ratio, results, save
from torch import Tensor

from chainograd import CheckpointedChain, meter

METHODS = ("plain", "chain")
STEPS = (5, 10, 20, 40)
TIMED = 20  # the largest M that is timed: a step takes as long whatever M is


def workload(M: int, batch: int, device: str) -> tuple[Callable[[str], Tensor], int]:
    """Return ``objective(method) -> loss`` of a discovery step, and the bytes of a node."""
    config = from_preset("MNIST32-400-20-32-5", M=M, batch_size=batch, head_std=0.1)
    networks = RunNetworks.build(config, device=device)
    networks.D.requires_grad_(False)
    loss = Objective(networks)
    x_T, k, s = networks.draw(batch)
    with torch.no_grad():
        x_0 = networks.real(x_T)
    step = networks.shifted.step

    def objective(method: str) -> Tensor:
        if method == "chain":
            shifted = CheckpointedChain(step, M)(x_T, k, s)
        else:
            shifted = x_T
            for i in range(M):
                shifted = step(shifted, i, k, s)
        return loss(x_0, shifted, k, s)["loss"]

    return objective, x_T.numel() * x_T.element_size()


def memory(method: str, M: int, batch: int, device: str) -> dict[str, Any]:
    """Return the peak of a training step after a first one: gradients and caches are there."""
    objective, node = workload(M, batch, device)
    objective(method).backward()
    with meter(device) as reading:
        objective(method).backward()
    return {"method": method, "M": M, "batch": batch, "node_bytes": node,
            "peak_bytes": reading.peak_bytes}  # fmt: skip


def timing(M: int, batch: int, device: str, pairs: int = 3) -> dict[str, Any]:
    """Return seconds of training steps, plain loop and chain in turn, after one of each."""
    objective, _ = workload(M, batch, device)

    def step(method: str) -> None:
        objective(method).backward()

    runs = {method: partial(step, method) for method in METHODS}
    return {"M": M, "batch": batch, "seconds": in_turn(runs, pairs, device)}


def table(content: dict[str, Any]) -> str:
    """Return the readings as a Markdown table; the time ratio is the median over pairs."""
    lines = ["| M | plain MiB | chain MiB | of it nodes | memory | time |", "|" + "---:|" * 6]
    by = {(row["method"], row["M"]): row for row in content["memory"]}
    seconds = {row["M"]: row["seconds"] for row in content["timing"]}
    for M in sorted({row["M"] for row in content["memory"]}):
        chain = by["chain", M]
        plain_bytes, chain_bytes = by["plain", M]["peak_bytes"], chain["peak_bytes"]
        time = f"{ratio(seconds[M], 'chain', 'plain'):.2f}" if M in seconds else ""
        lines.append(
            f"| {M} | {plain_bytes / 2**20:.1f} | {chain_bytes / 2**20:.1f} "
            f"| {M * chain['node_bytes'] / 2**20:.2f} | {chain_bytes / plain_bytes:.3f} "
            f"| {time} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for method, label in (("plain", "plain loop"), ("chain", "CheckpointedChain")):
        mine = [row for row in rows if row["method"] == method]
        axes.plot(
            [r["M"] for r in mine], [r["peak_bytes"] / 2**20 for r in mine], "o-", label=label
        )
    axes.set(xlabel="M, sampling steps", ylabel="peak live MiB of a training step", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--M", type=int, nargs="+", default=STEPS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--out", type=Path, help="JSON file; the figure goes beside it")
    options = parser.parse_args()
    device: str = options.device
    out: Path = options.out or results("vram_vs_M", device)
    jobs = [(method, M, options.batch, device) for method in METHODS for M in options.M]
    memories = each_apart(memory, jobs, device)
    timings = [apart(timing, M, options.batch, device) for M in options.M if M <= TIMED]
    content = save(out, device, {"memory": memories, "timing": timings})
    draw(memories, out.with_suffix(".png"))
    print(table(content))
    print(f"\nwrote {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
