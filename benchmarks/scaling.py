"""Discovery in one process and in several: seconds per step for the same batch.

Run ``python benchmarks/scaling.py``. Each number of processes is a separate run by ``torchrun``,
with one thread per process on a CPU and one GPU per process on CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measured import default_device, results, save

BATCH = 16
WORDS = ("MNIST32-400-20-32-5", "--M", "5", "--K", "8", "--batch-size", str(BATCH),
         "--reconstructor", "difference")  # fmt: skip
WARM_UP = 2  # steps that are not counted, because first steps pay first-call costs


def seconds(processes: int, steps: int, device: str) -> list[float]:
    """Return the seconds of each step after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(processes), "-m", "hdiscovery", "train", *WORDS, "--steps", str(WARM_UP + steps),
            "--out", str(run), "--device", device, "--save-every", str(WARM_UP + steps),
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        records = (run / "records.jsonl").read_text().splitlines()
    return [json.loads(record)["seconds"] for record in records][WARM_UP:]


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table: seconds per step, and the share of the ideal speed-up."""
    rows = content["runs"]
    alone = median(rows[0]["seconds"])
    lines = [
        "| processes | s a step | pairs a second | faster | of the ideal |",
        "|" + "---:|" * 5,
    ]
    for row in rows:
        took, n = median(row["seconds"]), row["processes"]
        lines.append(
            f"| {n} | {took:.2f} | {content['batch_size'] / took:.1f} | {alone / took:.2f} "
            f"| {alone / took / n:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    device = default_device()
    most = torch.cuda.device_count() if device == "cuda" else 2
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=device)
    parser.add_argument("--processes", type=int, nargs="+", default=sorted({1, most}))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out: Path = options.out or results("scaling", options.device)
    runs = [
        {"processes": n, "seconds": seconds(n, options.steps, options.device)}
        for n in options.processes
    ]
    content = {"words": WORDS, "batch_size": BATCH, "threads_a_process": 1, "runs": runs}
    print(table(save(out, options.device, content)))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
