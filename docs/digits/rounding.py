"""What bfloat16 does to weak shifts: ``python docs/digits/rounding.py RUN`` writes rounding.json.

The same pairs in float32 and under bfloat16 autocast, both images of a pair in the same precision.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import RunNetworks
from hdiscovery.directions.saved import open_networks
from hdiscovery.directions.seeds import seeded
from hdiscovery.directions.shipped import located
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

OUT = Path(__file__).with_name("rounding.json")
PAIRS, AT_ONCE, SEED = 256, 64, 3
LEVELS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # of |s|
HEADER = (
    "| size of s | change | rounding | cosine | accuracy in float32 | in bfloat16 |\n"
    "|---:|---:|---:|---:|---:|---:|"
)


def under(networks: RunNetworks, **changes: Any) -> RunNetworks:
    """Return the same networks under a config with these changes."""
    other = RunNetworks.build(networks.config.replace(**changes), networks.dm)
    other.shift_block.load_state_dict(networks.shift_block.state_dict())
    other.R.load_state_dict(networks.R.state_dict())
    other.R.eval()
    return other


@torch.no_grad()
def pairs_of(networks: RunNetworks, level: float) -> dict[str, Tensor]:
    """Return what each shift of that size changes, and whether R knows its direction."""
    with seeded(SEED):
        x_T, k, s = networks.draw(PAIRS)
    changes, right = [], []
    for x, j, sign in zip(*(v.split(AT_ONCE) for v in (x_T, k, s.sign())), strict=True):
        x_0, shifted = networks.real(x), networks.shifted(x, j, level * sign)
        changes.append((shifted - x_0).flatten(1))
        right.append(networks.R(x_0, shifted)[0].argmax(1) == j)
    return {"change": torch.cat(changes), "right": torch.cat(right).float()}


def measured(networks: RunNetworks) -> list[dict[str, float]]:
    """Return a row for each size of a shift."""
    exactly, roundly = (under(networks, autocast=precision) for precision in ("off", "bf16"))
    rows = []
    for level in tqdm(LEVELS):
        exact, rounded = pairs_of(exactly, level), pairs_of(roundly, level)
        d, d_rounded = exact["change"], rounded["change"]
        rows.append({
            "s": level, "change": d.abs().mean().item(),
            "rounding": (d_rounded - d).abs().mean().item(),
            "cosine": cosine_similarity(d, d_rounded).mean().item(),
            "accuracy": exact["right"].mean().item(),
            "accuracy_rounded": rounded["right"].mean().item(),
        })  # fmt: skip
    return rows


def table(content: dict[str, Any]) -> str:
    """Return what was written as a Markdown table."""
    lines = [
        f"| {row['s']:g} | {row['change']:.4f} | {row['rounding']:.4f} | {row['cosine']:.2f} "
        f"| {row['accuracy']:.2f} | {row['accuracy_rounded']:.2f} |"
        for row in content["rows"]
    ]
    return "\n".join([HEADER, *lines, "", f"Of {content['pairs']} pairs at each size."])


if __name__ == "__main__":
    networks, _ = open_networks(RunFolder.open(located(Path(sys.argv[1]))))
    content = {"run": sys.argv[1], "pairs": PAIRS, "rows": measured(networks)}
    OUT.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))
