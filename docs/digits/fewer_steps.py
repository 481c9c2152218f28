"""The same directions in fewer steps: ``python docs/digits/fewer_steps.py RUN``.

Writes fewer_steps.json. The pairs of all rows have the same x_T, k and s; float32.
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
from rounding import under
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm

OUT = Path(__file__).with_name("fewer_steps.json")
PAIRS, AT_ONCE, SEED = 512, 64, 4
STRENGTHS = {20: 1.0, 10: 1.6, 5: 2.0}  # a shift adds up over 12, 6 or 3 steps
HEADER = "| M | strength | change | cosine | accuracy |\n|---:|---:|---:|---:|---:|"


def in_steps(networks: RunNetworks, M: int, strength: float) -> RunNetworks:
    """Return the same networks in M steps, the directions times ``strength``."""
    other = under(networks, M=M, autocast="off")
    for head in other.shift_block.heads:
        head.data.mul_(strength)
    return other


@torch.no_grad()
def pairs_of(networks: RunNetworks) -> tuple[Tensor, Tensor]:
    """Return what each shift changes, ``[PAIRS, C H W]``, and whether R knows its direction."""
    with seeded(SEED):
        drawn = networks.draw(PAIRS)
    changes, right = [], []
    for x_T, k, s in tqdm(list(zip(*(v.split(AT_ONCE) for v in drawn), strict=True))):
        x_0, shifted = networks.real(x_T), networks.shifted(x_T, k, s)
        changes.append((shifted - x_0).flatten(1))
        right.append(networks.R(x_0, shifted)[0].argmax(1) == k)
    return torch.cat(changes), torch.cat(right).float()


def measured(networks: RunNetworks) -> list[dict[str, float]]:
    """Return a row for each number of steps; the first is what the others are compared with."""
    made = {M: pairs_of(in_steps(networks, M, by)) for M, by in STRENGTHS.items()}
    reference, _ = made[max(made)]
    return [
        {"M": M, "strength": STRENGTHS[M], "change": d.abs().mean().item(),
         "cosine": cosine_similarity(d, reference).mean().item(), "accuracy": right.mean().item()}
        for M, (d, right) in made.items()
    ]  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Return what was written as a Markdown table."""
    lines = [
        f"| {row['M']} | {row['strength']:g} | {row['change']:.4f} | {row['cosine']:.2f} "
        f"| {row['accuracy']:.2f} |"
        for row in content["rows"]
    ]
    return "\n".join([HEADER, *lines, "", f"Of {content['pairs']} pairs at each M."])


if __name__ == "__main__":
    networks, _ = open_networks(RunFolder.open(located(Path(sys.argv[1]))))
    content = {"run": sys.argv[1], "pairs": PAIRS, "rows": measured(networks)}
    OUT.write_text(json.dumps(content, indent=2) + "\n")
    print(table(content))
