"""Sphinx: the pages here, the reference from docstrings, the tables from measured files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

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


def write_memory_table() -> None:
    """Turn ``benchmarks/results/cpu/vram_vs_M.json`` into the table that a page includes."""
    spec = importlib.util.spec_from_file_location("vram_vs_M", ROOT / "benchmarks" / "vram_vs_M.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "vram_vs_M.json").read_text())
    facts = content["environment"]
    text = (
        f"{benchmark.table(content['memory'], content['timing'])}\n\n"
        f"Written by `{facts['command']}` on {facts['date'][:10]}: {facts['device']}, "
        f"{facts['threads']} threads, torch {facts['torch']}, "
        f"batch {content['memory'][0]['batch']}."
    )
    folder = ROOT / "docs" / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "vram_vs_M.md").write_text(text + "\n")


write_memory_table()
