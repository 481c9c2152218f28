"""Make the mistakes of ``mutants.toml`` one at a time in a copy, and see that tests fail.

Run from the project's root: ``python tests/mutate.py [--jobs N] [WORD …]`` runs those mutants whose
`what` has a WORD, or all. It prints which test caught each mutant, as a table.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("chainograd", "applications", "tests", "benchmarks", "examples", "docs")
Mutant = dict[str, str]


class Place(NamedTuple):
    """A part of a file: the characters from ``start`` to ``end`` of the file at ``path``."""

    path: Path
    start: int
    end: int


def mutants() -> list[Mutant]:
    """Return the mutants, each with `what`, `at`, `before`, `after` and `tests`."""
    return tomllib.loads((ROOT / "tests" / "mutants.toml").read_text())["mutant"]


def mutated(mutant: Mutant) -> tuple[Path, str]:
    """Return the path of the file that a mutant changes, and the file's text with the mistake.

    Raises:
        ValueError: If the mutant's place or text does not occur exactly once.
    """
    path, start, end = _place(mutant)
    text = path.read_text()
    part = text[start:end]
    if part.count(mutant["before"]) != 1:
        raise ValueError(
            f"Mutant {mutant['what']!r}: `before` occurs {part.count(mutant['before'])} times in "
            f"`{mutant['at']}`, expected once. Write the mutant anew."
        )
    return path, text[:start] + part.replace(mutant["before"], mutant["after"]) + text[end:]


def _place(mutant: Mutant) -> Place:
    """Return where ``at`` is: a function or class by its qualified name, or a whole file.

    A name that several modules define has its module before it: ``links:_own``. A file has its
    suffix, and its folder before it where several files have its name.
    """
    module, _, name = mutant["at"].rpartition(":")
    places = _definitions()[name] if name in _definitions() else _files(name)
    found = [each for each in places if f"/{each.path.with_suffix('')}".endswith(f"/{module}")]
    if not module:
        found = places
    if len(found) != 1:
        where = ", ".join(str(each.path) for each in found) or "nowhere"
        raise ValueError(
            f"Mutant {mutant['what']!r}: `at` {mutant['at']!r} is defined in {where}, expected one "
            "place. Put the module's name before it, as in `module:name`."
        )
    return found[0]


def _files(name: str) -> list[Place]:
    paths = [path for path in _code() if f"/{path}".endswith(f"/{name}")]
    return [Place(path, 0, len(path.read_text())) for path in paths]


@cache
def _code() -> list[Path]:
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".js", ".css", ".jinja", ".toml"} and path.name != "mutants.toml"
    ]


@cache
def _definitions() -> dict[str, list[Place]]:
    """Return where each function, class and method is, by its qualified name."""
    found: dict[str, list[Place]] = {}
    for path in _code():
        if path.suffix == ".py":
            text = path.read_text()
            starts = [0, *(end.end() for end in re.finditer("\n", text)), len(text)]
            for name, first, last in _defined(ast.parse(text), ""):
                found.setdefault(name, []).append(Place(path, starts[first - 1], starts[last]))
    return found


def _defined(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yield the qualified name, the first and the last line of each definition."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            first = min([each.lineno, *(d.lineno for d in each.decorator_list)])
            assert each.end_lineno is not None
            yield prefix + each.name, first, each.end_lineno
            if isinstance(each, ast.ClassDef):
                yield from _defined(each, f"{prefix}{each.name}.")


def caught_by(mutant: Mutant, copy: Path) -> str | None:
    """Return the first test that fails with the mutant in force; None if every test passes."""
    path, text = mutated(mutant)
    original = copy / path.relative_to(ROOT)
    before = original.read_text()
    original.write_text(text)
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
        return None
    failed = re.search(r"^(?:FAILED|ERROR) ([\w/.]+::[\w:]+)", done.stdout, re.MULTILINE)
    if failed is None:  # a file that cannot be imported, as where torch is missing, tests nothing
        raise RuntimeError(f"pytest ran no test that failed:\n{done.stdout}")
    return failed[1]


def run(chosen: list[Mutant], jobs: int) -> int:
    """Run mutants, each in its own copy of the code, and print a row for each.

    Returns:
        How many mutants survive.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for j in range(jobs):
            free.put(copy := Path(folder) / str(j))
            for name in FOLDERS:
                shutil.copytree(ROOT / name, copy / name)
            shutil.copy(ROOT / "pyproject.toml", copy)

        def one(mutant: Mutant) -> bool:
            copy = free.get()
            try:
                found = caught_by(mutant, copy)
            finally:
                free.put(copy)
            print(f"| {mutant['what']} | `{mutant['at']}` | {found or '**nothing**'} |", flush=True)
            return found is None

        print("| mistake | in | caught by |\n|---|---|---|", flush=True)
        return sum(pool.map(one, chosen))


def main() -> int:
    """Run the chosen mutants; return how many survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("words", nargs="*")
    given = parser.parse_args()
    chosen = [m for m in mutants() if not given.words or any(w in m["what"] for w in given.words)]
    survivors = run(chosen, given.jobs)
    print(f"\n{len(chosen) - survivors} of {len(chosen)} caught")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
