"""Sphinx: the pages here, the reference from docstrings, the tables from measured files."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

import matplotlib

import chainograd

ROOT = Path(__file__).resolve().parent.parent

project = "chainograd"
copyright = "the chainograd authors"
release = version = chainograd.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build", "_generated"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_enable_extensions = ["dollarmath"]


def write_table(name: str) -> None:
    """Turn ``benchmarks/results/cpu/NAME.json`` into the table that a page includes."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    benchmark = importlib.import_module(name)
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu" / f"{name}.json").read_text())
    facts = content["environment"]
    text = (
        f"{benchmark.table(content)}\n\n"
        f"Written by `{facts['command']}` on {facts['date'][:10]}: {facts['device']}, "
        f"{facts['threads']} threads, torch {facts['torch']}."
    )
    folder = ROOT / "docs" / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text + "\n")


def draw_plan() -> None:
    """Draw the plan that a page shows."""
    figure = chainograd.binomial(20, slots=4).draw().figure
    figure.savefig(ROOT / "docs" / "_generated" / "plan.png", dpi=120)  # type: ignore[union-attr]


def write_conformance() -> None:
    """Run every scheduler of diffusers against its loop, and write the table of a page."""
    sys.path.insert(0, str(ROOT))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers', about options that it changes
        table = importlib.import_module("tests.chainograd.adapters.diffusers.conformance").table()
    (ROOT / "docs" / "_generated" / "conformance.md").write_text(table + "\n")


def write_measured(name: str) -> None:
    """Write what a script of docs/digits measured as the table that a page includes."""
    sys.path.insert(0, str(ROOT / "docs" / "digits"))
    content = json.loads((ROOT / "docs" / "digits" / f"{name}.json").read_text())
    table = importlib.import_module(name).table(content)
    (ROOT / "docs" / "_generated" / f"{name}.md").write_text(table + "\n")


def write_results() -> None:
    """Write the tables and pictures of the shipped run."""
    results = importlib.import_module("results")
    results.write(results.SHIPPED, ROOT / "docs" / "_generated")


def write_examples() -> None:
    """Write what each example measured as the table that a page includes."""
    sys.path.insert(0, str(ROOT / "examples"))
    importlib.import_module("record").write_tables(ROOT / "docs" / "_generated")


matplotlib.use("agg")
for name in (
    "vram_vs_M",
    "frozen_unet",
    "speed",
    "diffusers_loop",
    "scaling",
    "throughput",
    "largest_batch",
    "paper_scale",
    "long_chain",
    "what_fits",
    "loss_head",
    "run_all",
):
    write_table(name)
draw_plan()
write_measured("tried")
write_measured("rounding")
write_measured("fewer_steps")
write_results()
write_conformance()
write_examples()
