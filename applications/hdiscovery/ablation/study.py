"""Trains every variant, measures it, and puts the measures side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hdiscovery.directions.config import DiscoveryConfig, run_config
from hdiscovery.directions.open import open_directions
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.evaluation.report import COLUMNS, evaluate
from hdiscovery.evaluation.settings import Sizes, Sources
from hdiscovery.training.loop import train
from hdiscovery.training.world import World

Records = Iterable[dict[str, Any]]


def open_variant(folder: Path, name: str, config: DiscoveryConfig) -> RunFolder:
    """Return a variant's run folder, new or begun earlier with the same config.

    Raises:
        ValueError: If it was begun with another config.
    """
    path = folder / name
    if not (path / "config.json").exists():
        return RunFolder.create(path, asdict(config))
    run = RunFolder.open(path)
    before, now = run_config(run).leaves(), config.leaves()
    changed = [field for field in now if before[field] != now[field]]
    if changed:
        raise ValueError(
            f"{path} was begun with {changed[0]} = {before[changed[0]]!r}, not "
            f"{now[changed[0]]!r}. Choose another `--out`, or remove that folder."
        )
    return run


def train_variant(
    run: RunFolder,
    config: DiscoveryConfig,
    *,
    device: torch.device | str = "cpu",
    shown: Callable[[Records], Records] = iter,
) -> None:
    """Train a variant to its end, from where it stands."""
    for _ in shown(train(run, config, World(device=torch.device(device)))):
        pass


def measure_variant(
    run: RunFolder,
    *,
    parts: Iterable[str],
    sizes: Sizes,
    sources: Sources,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Measure a variant, write ``evaluation.json`` and return it, or return what is there already.

    The file that is there counts if it has all of the parts and is of the same checkpoint, sizes
    and sources.
    """
    checkpoint, path = run.load_checkpoint(), run.path / "evaluation.json"
    step = checkpoint["step"] if checkpoint else 0
    if path.is_file():
        report = run.read_json("evaluation.json")
        there = {*report["subjects"].get("learnt", {}), *({"losses"} & report.keys())}
        same = (
            report["step"] == step
            and report["sizes"] == json.loads(json.dumps(asdict(sizes)))
            and report.get("sources") == _told(sources)
        )
        if same and set(parts) <= there:
            return report
    report = {}
    for report in evaluate(
        open_directions(run.path, device=device),
        parts=parts,
        sizes=sizes,
        sources=sources,
    ):
        run.write_json("evaluation.json", {**report, "sources": _told(sources)})
    return report


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row a variant, a column a measure that any of them has.

    L_G and the findings are from the training, the rest from the evaluation of the directions.
    """
    learnt = {name: report["subjects"].get("learnt", {}) for name, report in reports.items()}
    rows = {name: _measured(results) for name, results in learnt.items()}
    for name, report in reports.items():
        losses = report.get("losses")
        if losses:
            found = ", ".join(finding["name"] for finding in losses["findings"]) or "none"
            rows[name] |= {"L_G": f"{losses['L_G']:.3f}", "findings": found}
    heads = [name for name, _, _ in COLUMNS] + ["L_G", "findings"]
    heads = [head for head in heads if any(head in row for row in rows.values())]
    shown = " | ".join(head.replace("|", "\\|") for head in heads)
    lines = [f"| variant | {shown} |", "|---|" + "---:|" * len(heads)]
    lines += [
        f"| {name} | {' | '.join(row.get(head, '-') for head in heads)} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def _told(sources: Sources) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(sources).items()}


def _measured(results: Mapping[str, Any]) -> dict[str, str]:
    """Return a variant's cells by their column; an indented measure goes with the one before."""
    cells: dict[str, str] = {}
    for name, path, form in COLUMNS:
        value: Any = results
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and name.startswith(" "):
            cells[next(reversed(cells))] += f" ± {form.format(value)}"
        elif value is not None:
            cells[name] = form.format(value)
    return cells
