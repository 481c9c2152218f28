"""Imports run one way, tests mirror the packages, and the reference shows what is public."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import chainograd

ROOT = Path(chainograd.__file__).parent
# A room is a package or a module of the core. It imports rooms of the floors above it in this list.
FLOORS = (
    ("errors", "plans", "samplers", "tensors"),
    ("captured", "metering", "torch_internals"),
    ("replay", "state"),
    ("frozen", "report", "storage", "truncation"),
    ("engine", "options"),
    ("preflight", "trajectory"),
    ("chain",),
    ("adapters",),
)
ROOMS = [room for floor in FLOORS for room in floor]


def test_the_core_imports_neither_application_nor_optional_libraries():
    code = "import sys, chainograd, chainograd.samplers; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()

    others = {"hdiscovery", "diffusers", "torchvision", "safetensors", "matplotlib", "tyro"}
    assert not {name.partition(".")[0] for name in loaded} & others


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_a_room_imports_only_rooms_of_floors_before_it(floor):
    before = {room for rooms in FLOORS[:floor] for room in rooms}

    for room in FLOORS[floor]:
        for path in [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]:
            if path.exists():
                assert imported(path) <= before | {room}, path


def imported(path):
    return {
        node.module.split(".")[1]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chainograd.")
    }


def test_the_core_has_these_rooms_and_at_most_twenty():
    rooms = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}

    assert rooms - {"__init__"} == set(ROOMS)
    assert len(ROOMS) <= 20
    assert len(FLOORS) <= 8


def test_every_folder_of_tests_is_a_room_of_the_core():
    tests = ROOT.parent / "tests" / "chainograd"
    folders = {path.parent.relative_to(tests).parts[:1] for path in tests.rglob("*.py")}

    assert folders - {()} <= {(room,) for room in ROOMS}


def test_no_test_of_the_core_imports_another():
    imports = re.compile(r"^(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    tests = (ROOT.parent / "tests" / "chainograd").rglob("*.py")

    assert not [path for path in tests if imports.search(path.read_text())]


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
