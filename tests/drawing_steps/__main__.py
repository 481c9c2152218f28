"""Draw many steps: ``python -m tests.drawing_steps --draws 10000 --seed 0``, or one of them.

What fails is printed in groups; ``--one SEED`` repeats a single draw and shows its plainest form.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch

from tests.drawing_steps.draw import Draw, draw
from tests.drawing_steps.outcome import Outcome, grouped, outcome, shrunk


def main() -> int:
    """Run the draws that are asked for; return whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--one", type=int, help="the seed of a single draw")
    parser.add_argument("--first", help="the kind of the first layer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one is not None:
        drawn = draw(given.one, given.first)
        found = outcome(drawn)
        print(f"{drawn}\n{found.kind}: {found.text}")
        if found.failed:
            print(f"plainest: {(plain := shrunk(drawn))}\n{outcome(plain).text}")
        return int(found.failed)
    counts: Counter[str] = Counter()
    failures: dict[int, tuple[Draw, Outcome]] = {}
    for seed in range(given.seed, given.seed + given.draws):
        drawn = draw(seed, given.first)
        found = outcome(drawn)
        counts["failed" if found.failed else found.kind] += 1
        if found.kind == "void":
            counts[f"void, {found.text}"] += 1
        if found.failed:
            failures[seed] = drawn, found
            print(f"seed {seed}: {found.kind}", file=sys.stderr, flush=True)
    print(grouped(failures))
    print("\n".join(f"{count} {kind}" for kind, count in counts.most_common()))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
