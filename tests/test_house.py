"""Data flows one way, and the reference shows what is public."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chainograd

ROOT = Path(chainograd.__file__).parent
# A module may import those before it, never those after.
ROOMS = (
    "errors", "dense_parts", "devices", "host_streams", "compiling", "drawing", "integers",
    "actions", "carried_out", "holding", "plan", "planners", "budget", "metering", "sharded",
    "sums", "apart", "unnamed", "wrappers", "containers", "scripted", "parts", "search",
    "captured", "streams", "settings", "surroundings", "buffers", "traces", "digests",
    "signatures", "replay", "states", "graphs", "hooks", "saved", "recipes", "alive", "stand_ins",
    "frozen", "steps", "slices", "packing", "transfers", "background", "folders", "stores",
    "reporting", "tape", "costs", "forward", "sweep", "functions", "second", "passes", "links",
    "grad_steps", "options", "refusals", "findings", "sites", "watching", "rehearsal",
    "exactness", "verdicts", "preflight", "cut_offs", "chain", "cotangents", "truncation",
    "samplers", "adapters",
)  # fmt: skip


def test_the_core_imports_neither_application_nor_optional_libraries():
    code = "import sys, chainograd, chainograd.samplers; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()

    others = {"hdiscovery", "diffusers", "torchvision", "safetensors", "matplotlib", "tyro"}
    assert not {name.partition(".")[0] for name in loaded} & others


@pytest.mark.parametrize("room", ROOMS)
def test_a_module_imports_only_what_comes_before_it(room):
    paths = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else (ROOT / room).glob("*.py")
    before = ROOMS[: ROOMS.index(room) + (room in ("samplers", "adapters"))]

    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chainograd."):
                assert node.module.split(".")[1] in before, f"{path} imports {node.module}"


def test_every_module_of_the_core_has_its_place():
    modules = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}

    assert modules - {"__init__"} == set(ROOMS)


def test_a_public_name_is_never_that_of_a_module():
    assert not set(chainograd.__all__) & set(ROOMS)


def test_the_reference_shows_exactly_what_is_public():
    page = ROOT.parent / "docs" / "reference.md"
    shown = re.findall(r"auto(?:class|exception|function):: chainograd\.(\w+)\n", page.read_text())

    assert set(shown) == set(chainograd.__all__)


def test_the_oldest_versions_that_are_tested_are_the_oldest_allowed():
    project = ROOT.parent
    allowed = dict(re.findall(r'"([a-z-]+)>=([\d.]+)', (project / "pyproject.toml").read_text()))
    tested = re.findall(r"^([a-z-]+)==([\d.]+)", (project / "tests/oldest.txt").read_text(), re.M)

    assert {"torch", "torchvision", "diffusers"} <= {name for name, _ in tested}
    assert all(f"{version}.".startswith(f"{allowed[name]}.") for name, version in tested)
