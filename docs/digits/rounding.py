"""What bfloat16 does to weak shifts: ``python docs/digits/rounding.py RUN`` writes rounding.json.

The same pairs in float32 and under bfloat16 autocast, both images of a pair in the same precision.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hdiscovery.config import run_config
from hdiscovery.discovery import Discovery
from hdiscovery.evaluate.subject import Pair, of_run, pairs
from hdiscovery.published import located, open_directions
from hdiscovery.run import RunFolder
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

OUT = Path(__file__).with_name("rounding.json")
PAIRS, SEED, BINS = 1024, 3, 5
HEADER = (
    "| \\|s\\| | pairs | change | rounding | cosine | accuracy in float32 | in bfloat16 |\n"
    "|---|---:|---:|---:|---:|---:|---:|"
)


def drawn(run: RunFolder, precision: Any) -> Pair:
    """Return pairs of a run, its networks in that precision."""
    published, _ = open_directions(run)
    config = replace(run_config(run), autocast=precision)
    discovery = Discovery.build(config, dm=published.dm)
    discovery.shift_block.load_state_dict(published.shift_block.state_dict())
    parts = pairs(of_run(discovery), PAIRS, seed=SEED, progress=tqdm)
    x_0, shifted, k, s = (torch.cat(column) for column in zip(*parts, strict=True))
    return x_0, shifted, k, s


def rows(run: RunFolder) -> list[dict[str, float]]:
    """Return what was measured, from the weakest shifts to the strongest."""
    exact, rounded = drawn(run, "off"), drawn(run, "bf16")
    discovery, _ = open_directions(run)
    R, S = discovery.R.eval(), discovery.config.S
    k, s = exact[2:]
    with torch.no_grad():
        right, right_rounded = ((R(x_0, y)[0].argmax(1) == k).float()
                                for x_0, y, *_ in (exact, rounded))  # fmt: skip
    d, d_rounded = ((y - x_0).flatten(1) for x_0, y, *_ in (exact, rounded))
    of_pair = {
        "change": d.abs().mean(1), "rounding": (d_rounded - d).abs().mean(1),
        "cosine": cosine_similarity(d, d_rounded), "accuracy": right,
        "accuracy_rounded": right_rounded,
    }  # fmt: skip
    measured = []
    for i in range(BINS):
        low, high = S * i / BINS, S * (i + 1) / BINS
        among = (s.abs() >= low) & (s.abs() < high)
        means = {name: values[among].mean().item() for name, values in of_pair.items()}
        measured.append({"from": low, "to": high, "pairs": int(among.sum()), **means})
    return measured


def table(measured: list[dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADER]
    for row in measured:
        lines.append(
            f"| {row['from']:g} to {row['to']:g} | {row['pairs']} | {row['change']:.4f} "
            f"| {row['rounding']:.4f} | {row['cosine']:.2f} | {row['accuracy']:.2f} "
            f"| {row['accuracy_rounded']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    measured = rows(RunFolder.open(located(Path(sys.argv[1]))))
    OUT.write_text(json.dumps(measured, indent=2) + "\n")
    print(table(measured))
