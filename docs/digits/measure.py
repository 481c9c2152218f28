"""Measure a run: ``python docs/digits/measure.py RUN NAME --data DIR``, two hours on two cores.

The script runs the commands of that NAME below one after another, and writes the seconds of each
beside itself. Then name what you see (``hdiscovery gallery RUN``, ``hdiscovery publish RUN --label
K=NAME …``), publish the run, and draw the page's picture: ``python docs/digits/named.py``.
``properties`` (``--only 4`` of digits) measures the shipped run: repeat it once RUN is shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
COMMANDS = {
    "digits": (
        "evaluate RUN --only losses rca fid --data DIR --features digits --images 10000",
        "rank RUN",
        "evaluate RUN --only probes --samples 8 --data DIR",
        "evaluate RUN --only fresh marks --baselines random pca",
        "properties digits --out HERE --overwrite",  # of the run that is shipped, once RUN is
        "ablate MNIST32-demo --only paper l1-only --out ABLATION --data DIR --features digits",
    ),
    "digits-20": (
        "evaluate RUN --only losses rca fresh fid --fresh-pairs 8000 --fresh-steps 3000 --data DIR "
        "--features digits --images 10000 --batch-size 50 --compile",
        "rank RUN --compile",
        "evaluate RUN --only probes --samples 8 --data DIR --compile",
    ),
}


def timed(command: str, run: Path, data: Path) -> float:
    """Return the seconds of a command of hdiscovery."""
    places = {"RUN": run, "DIR": data, "HERE": HERE, "ABLATION": run.with_name("ablation")}
    words = " ".join(str(places.get(word, word)) for word in command.split())
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hdiscovery", *shlex.split(words)], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure; what was measured before stays where a number of COMMANDS is not asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of its COMMANDS")
    options = parser.parse_args()
    out = HERE / "commands.json"
    environment = {
        "torch": torch.__version__, "python": platform.python_version(),
        "machine": platform.machine(), "cores": os.cpu_count(),
    }  # fmt: skip
    commands = COMMANDS[options.name]
    for number in options.only or range(len(commands)):
        command = commands[number]
        seconds = timed(command, options.run, options.data)
        ran = json.loads(out.read_text()) if out.exists() else {}
        before = ran.get(options.name, {}).get("seconds", {})
        ran[options.name] = {
            "environment": environment,
            "seconds": {c: before[c] for c in commands if c in before} | {command: seconds},
        }
        out.write_text(json.dumps(ran, indent=2) + "\n")
        if command.startswith("ablate"):
            for drawn in ("ablation.json", "ablation.png"):
                shutil.copy(options.run.with_name("ablation") / drawn, HERE)


if __name__ == "__main__":
    main()
