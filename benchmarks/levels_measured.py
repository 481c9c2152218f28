"""Levels within a step on a small transformer: metered and predicted bytes, and time.

Run ``python benchmarks/levels_measured.py``. The network is a stack of transformer blocks with
frozen weights; the loss is on the last state. Host memory is the device's on a CPU, so plans that
keep blocks' inputs elsewhere use a folder. Each reading of bytes has a process of its own; times
are of runs that alternate in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measured import apart, in_turn, note, ratio, results, save
from torch import Tensor, nn

from chainograd import CheckpointedChain, meter
from chainograd.plans.planners import PlanName

BLOCKS, M, WIDTH, TOKENS, BATCH, PAIRS = 12, 20, 256, 256, 1, 5
WAYS: dict[str, tuple[PlanName, bool]] = {  # the plan, and whether its store is a folder
    "nodes": ("nodes", False),
    "nodes+attention": ("nodes+attention", False),
    "blocks": ("blocks", False),
    "blocks+attention": ("blocks+attention", False),
    "skeleton, device": ("skeleton", False),
    "skeleton": ("skeleton", True),
    "skeleton+attention": ("skeleton+attention", True),
}
BASE = "nodes"


class Block(nn.Module):
    """A transformer block whose norms are scaled by an embedding of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Linear(WIDTH, 4 * WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return the hidden states ``[N, tokens, width]`` after the block."""
        a, b, d, e = self.scales(c)[:, None].chunk(4, dim=-1)
        normed = F.layer_norm(h, (WIDTH,)) * (1 + a) + b
        heads = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(normed).chunk(3, -1))
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)
        h = h + self.out(attended)
        normed = F.layer_norm(h, (WIDTH,)) * (1 + d) + e
        return h + self.down(F.gelu(self.up(normed)))


class Step(nn.Module):
    """An Euler step of a flow."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor, i: int, c: Tensor) -> Tensor:
        """Return the state after step i."""
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, c + i / M)
        return x - self.leave(h) / M


def run_of(way: str, folder: str) -> Callable[[], CheckpointedChain]:
    """Return a run of the chain, there and back."""
    torch.manual_seed(0)
    plan, away = WAYS[way]
    step = Step().requires_grad_(False)
    x, c = torch.randn(BATCH, TOKENS, 16), torch.randn(BATCH, WIDTH, requires_grad=True)
    chain = CheckpointedChain(step, M, plan=plan, store=folder if away else "device")

    def run() -> CheckpointedChain:
        c.grad = None
        chain(x, c).square().mean().backward()
        return chain

    return run


def reading(way: str) -> dict[str, Any]:
    """Return the metered and the predicted peak of a way."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        plan, away = WAYS[way]
        step = Step().requires_grad_(False)
        with meter() as read:
            x, c = torch.randn(BATCH, TOKENS, 16), torch.randn(BATCH, WIDTH, requires_grad=True)
            chain = CheckpointedChain(step, M, plan=plan, store=folder if away else "device")
            chain(x, c).square().mean().backward()
        costs = chain.measure(x, c, kind=lambda i: i == 0)
        planned = chain.plan.with_costs(costs)
    return {
        "way": way,
        "peak_bytes": read.peak_bytes,
        "predicted_bytes": planned.peak_bytes,
        "stored_bytes": planned.stored_bytes,
    }


def measure() -> list[dict[str, Any]]:
    """Return all readings, with times as ratios to today's default plan."""
    rows = []
    for way in WAYS:
        rows.append(apart(reading, way))
        note(f"bytes of {way}")
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: run_of(way, folder) for way in WAYS}
        seconds = in_turn(runs, PAIRS, "cpu")
    base = next(row["peak_bytes"] for row in rows if row["way"] == BASE)
    return [
        {
            **row,
            "of_nodes_bytes": row["peak_bytes"] / base,
            "of_nodes_seconds": ratio(seconds, row["way"], BASE),
        }
        for row in rows
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| plan | MiB | predicted : metered | of `nodes` | time, of `nodes` | store, MiB |"]
    lines.append("|---|" + "---:|" * 5)
    for row in rows:
        lines.append(
            f"| {row['way']} | {row['peak_bytes'] / 2**20:.1f} "
            f"| {row['predicted_bytes'] / row['peak_bytes']:.4f} | {row['of_nodes_bytes']:.3f} "
            f"| {row['of_nodes_seconds']:.2f} | {row['stored_bytes'] / 2**20:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    out = results("levels_measured", "cpu")
    content = save(out, "cpu", {"levels": measure()})
    print(table(content["levels"]))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
