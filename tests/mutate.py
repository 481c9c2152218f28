"""Make the mistakes of ``mutants.toml`` one at a time in a copy, and see that tests fail.

Run from the project's root: ``python tests/mutate.py [--jobs N] [--new] [WORD …]`` (those
whose `what` has a WORD). What caught each of them is written into ``tests/README.md``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "tests" / "README.md"
HEAD = "| mistake | in | caught by |\n|---|---|---|\n"
SURVIVES = "**nothing**"
Mutant = dict[str, str]


def mutants() -> list[Mutant]:
    """Return the mutants, each with `what`, `file`, `before`, `after` and `tests`."""
    return tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]


def mutated(mutant: Mutant) -> str:
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


def caught_by(mutant: Mutant, copy: Path) -> str:
    """Return the first test that fails with the mutant in force, or that none does."""
    original = copy / mutant["file"]
    before = original.read_text()
    original.write_text(mutated(mutant))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", *mutant["tests"].split()],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'applications'}"},
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        original.write_text(before)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}")
    if done.returncode == 0:
        return SURVIVES
    failed = re.search(r"^(?:FAILED|ERROR) ([\w/.]+)::([\w:]+)", done.stdout, re.MULTILINE)
    if failed is None:  # a file that cannot be imported, as where torch is missing, tests nothing
        raise RuntimeError(f"pytest ran no test that failed:\n{done.stdout}")
    path, test = failed[1].removeprefix("tests/"), failed[2]
    return f"`{path}` {test.rpartition('::')[2].removeprefix('test_').replace('_', ' ')}"


def run(chosen: list[Mutant], jobs: int) -> int:
    """Run mutants, several at once, each in a copy of the code of its own; return how many survive.

    What catches a mutant is written down as soon as it is known.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for j in range(jobs):
            free.put(copy := Path(folder) / str(j))
            for name in ("chainograd", "applications", "tests", "benchmarks", "examples", "docs"):
                shutil.copytree(ROOT / name, copy / name)
            shutil.copy(ROOT / "pyproject.toml", copy)
        writing = Lock()

        def one(mutant: Mutant) -> bool:
            copy = free.get()
            try:
                found = caught_by(mutant, copy)
            finally:
                free.put(copy)
            with writing:
                print("SURVIVES" if found == SURVIVES else "caught  ", mutant["what"], flush=True)
                write_down(mutant, found)
            return found == SURVIVES

        return sum(pool.map(one, chosen))


def rows(page: str) -> dict[str, str]:
    """Return the rows of the table in a page, by the mistake."""
    table = page.partition(HEAD)[2]
    return {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}


def write_down(mutant: Mutant, found: str) -> None:
    """Write into the page what caught a mutant."""
    page = PAGE.read_text()
    known = rows(page)
    where = f"`{mutant['file'].removeprefix('chainograd/')}`"
    known[mutant["what"]] = f"| {mutant['what']} | {where} | {found} |"
    order = [mutant["what"] for mutant in mutants()]
    table = "\n".join(known[what] for what in order if what in known)
    PAGE.write_text(f"{page.partition(HEAD)[0]}{HEAD}{table}\n")


def main() -> int:
    """Run the mutants that are asked for; return how many survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--new", action="store_true", help="those that the page does not have")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    chosen = [m for m in mutants() if not given.words or any(w in m["what"] for w in given.words)]
    if given.new:
        known = rows(PAGE.read_text())
        chosen = [mutant for mutant in chosen if mutant["what"] not in known]
    survivors = run(chosen, given.jobs)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
