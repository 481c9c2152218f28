"""Runs every case in every way, and writes what came of it: a JSON file and the page's table.

``python -m tests.correctness.table`` runs all of them; ``--page`` only writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.correctness.cases import CASES, KINDS, missing
from tests.correctness.judge import SEVERITY, judged, of_ours, right, seen, worst
from tests.correctness.ways import PEERS

ROOT = Path(__file__).resolve().parents[2]
JSON, PAGE = Path(__file__).with_name("table.json"), ROOT / "docs" / "correctness.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
OURS = "chainograd"
SHOWN = {"silently wrong": "**silently wrong**", "right*": "right\\*"}


def measured() -> dict[str, Any]:
    """Return the environment and what came of every case in every way."""
    torch.set_num_threads(1)
    cases = {case.key: _row(case) for case in CASES if not missing(case)}
    return {"environment": _environment(), "cases": cases}


def _row(case: Any) -> dict[str, Any]:
    oracles = right(case)
    apart = of_ours(case, oracles)
    outcomes = {way.name: judged(oracles, seen(case, way)) for way in PEERS}
    outcomes[OURS] = worst(apart.values())
    return {
        "what": case.what,
        "source": case.source,
        "why": case.why,
        "outcomes": {name: [o.kind, o.detail] for name, o in outcomes.items()},
        "plans": {name: [o.kind, o.detail] for name, o in apart.items()},
    }


def _lines(content: dict[str, Any]) -> str:
    """Return JSON with a line for each case, so that a change shows as what it is."""
    rows = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(row)}" for key, row in content["cases"].items()
    )
    return f'{{"environment": {json.dumps(content["environment"])},\n"cases": {{\n{rows}\n}}}}\n'


def _environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "torch-remat": _version("torch-remat"),
        "peft": _version("peft"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": "python -m tests.correctness.table",
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def page(content: dict[str, Any]) -> str:
    """Return the table as it stands in the page, from a measured content."""
    cases = content["cases"]
    ways = list(next(iter(cases.values()))["outcomes"])
    parts = [f"## Of {len(cases)} cases\n\n{_counts(cases, ways)}"]
    for title, module in KINDS.items():
        kind = module.__name__.rpartition(".")[2]
        rows = {key: row for key, row in cases.items() if key.split("/")[0] == kind}
        parts.append(f"## {title}\n\n{_of_kind(rows, ways)}{_reasons(rows)}")
    return "\n".join([*parts, _foot(content["environment"])])


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _counts(cases: dict[str, Any], ways: list[str]) -> str:
    text = _line(["", *ways]) + _line(["---"] * (1 + len(ways)))
    for kind in SEVERITY:
        counts = [Counter(row["outcomes"][way][0] for row in cases.values()) for way in ways]
        text += _line([SHOWN.get(kind, kind), *(str(count[kind]) for count in counts)])
    return text


def _of_kind(rows: dict[str, Any], ways: list[str]) -> str:
    text = _line(["case", *ways]) + _line(["---"] * (1 + len(ways)))
    for key, row in rows.items():
        source = f" ({row['source']})" if row["source"] else ""
        named = f"*{_name(key)}*: {row['what']}{source}"
        text += _line([named, *(_cell(*row["outcomes"][way]) for way in ways)])
    return text


def _name(key: str) -> str:
    return key.split("/")[1]


def _cell(kind: str, detail: str) -> str:
    if kind.startswith("raises"):
        return f"{kind}: `{detail.partition(':')[0]}`"
    return f"{SHOWN[kind]}: {detail}" if kind == "silently wrong" else SHOWN.get(kind, kind)


def _reasons(rows: dict[str, Any]) -> str:
    told: dict[str, list[str]] = {}
    for key, row in rows.items():
        if row["why"]:
            told.setdefault(row["why"], []).append(f"*{_name(key)}*")
    lines = [f"- {', '.join(names)}: {why}" for why, names in told.items()]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _foot(facts: dict[str, Any]) -> str:
    remat = facts["torch-remat"]
    return (
        f"Written by `{facts['command']}` on {facts['date']}: torch {facts['torch']}, "
        f"{f'torch-remat {remat}' if remat else 'torch-remat was not installed'}, "
        f"Python {facts['python']}, {facts['machine']}, one thread. Other versions may differ.\n"
    )


def write_page(content: dict[str, Any]) -> None:
    """Put the table between the page's markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{page(content)}\n{END}{after}")


def main() -> None:
    """Measure unless told not to, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", action="store_true", help="write the page from the JSON file")
    if not parser.parse_args().page:
        JSON.write_text(_lines(measured()))
    write_page(json.loads(JSON.read_text()))


if __name__ == "__main__":
    main()
