"""Make the mistakes of ``mutants.toml`` one at a time in a copy, and see that tests fail.

Run from the project's root: ``python tests/mutate.py [WORD …]`` (those whose `what` has a WORD).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent


def mutants() -> list[dict[str, str]]:
    """Return the mutants, each with `what`, `file`, `before`, `after` and `tests`."""
    return tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]


def mutated(mutant: dict[str, str]) -> str:
    """Return the text of the mutant's file with its mistake in it.

    Raises:
        ValueError: If the code it changes is not there, or not there once.
    """
    text = (ROOT / mutant["file"]).read_text()
    if text.count(mutant["before"]) != 1:
        raise ValueError(
            f"mutant {mutant['what']!r}: `before` occurs {text.count(mutant['before'])} times in "
            f"{mutant['file']}; write it anew."
        )
    return text.replace(mutant["before"], mutant["after"])


def survives(mutant: dict[str, str], copy: Path) -> bool:
    """Return whether the mutant's tests pass although it is in force."""
    original = copy / mutant["file"]
    before = original.read_text()
    original.write_text(mutated(mutant))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *mutant["tests"].split()],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'applications'}"},
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        original.write_text(before)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}")
    return done.returncode == 0


def main(words: list[str]) -> int:
    """Run the mutants; return how many survive."""
    chosen = [m for m in mutants() if not words or any(word in m["what"] for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("chainograd", "applications", "tests"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for mutant in chosen:
            survived = survives(mutant, copy)
            survivors += survived
            print("SURVIVES" if survived else "caught  ", mutant["what"], flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return survivors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
