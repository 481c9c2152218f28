"""All benchmarks, one after the other: ``python benchmarks/run_all.py``, or ``make bench``.

The benchmarks share one process server, which imports torch once. The minutes of each benchmark are
written with the figures.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Any

from measured import default_device, note, results, save

NAMES = ("vram_vs_M", "frozen_unet", "speed", "diffusers_loop", "scaling", "throughput",
         "largest_batch", "long_chain", "paper_scale", "loss_head")  # fmt: skip


def seconds(name: str) -> float:
    """Run a benchmark with its default options; return the seconds it took."""
    sys.argv = [str(Path(__file__).with_name(f"{name}.py"))]
    note(f"== {name}")
    started = time.perf_counter()
    importlib.import_module(name).main()
    return time.perf_counter() - started


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table of minutes."""
    took = content["seconds"]
    lines = ["| benchmark | minutes |", "|---|---:|"]
    lines += [f"| {name} | {each / 60:.1f} |" for name, each in took.items()]
    return "\n".join([*lines, f"| all | {sum(took.values()) / 60:.1f} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    names = parser.parse_args().only
    command, device = sys.argv, default_device()
    took = {name: seconds(name) for name in names}
    sys.argv = command
    content = {"seconds": took}
    if set(names) == set(NAMES):
        content = save(results("run_all", device), device, content)
    print(table(content))


if __name__ == "__main__":
    main()
