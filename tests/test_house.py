"""Data flows one way, and the reference shows what is public."""

import ast
import graphlib
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
APPLICATION = ROOT.parent / "applications" / "hdiscovery"
# The same for the application; `commands` and `api` come last, as they use all the others.
APPLICATION_FLOORS = (
    ("data", "dm", "extra", "progress"),
    ("networks",),
    ("directions",),
    ("editing", "train"),
    ("evaluate",),
    ("gallery", "refit"),
    ("ablation", "mos"),
    ("api",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
PACKAGES = {"chainograd": ROOT, "hdiscovery": APPLICATION}


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


@pytest.mark.parametrize("floor", range(len(APPLICATION_FLOORS)))
def test_a_room_of_the_application_imports_only_rooms_of_floors_before_it(floor):
    before = {room for rooms in APPLICATION_FLOORS[:floor] for room in rooms}

    for room in APPLICATION_FLOORS[floor]:
        for path in [APPLICATION / f"{room}.py", *(APPLICATION / room).rglob("*.py")]:
            if path.exists():
                assert imported(path, "hdiscovery") <= before | {room}, path


def imported(path, package="chainograd"):
    return {
        node.module.split(".")[1]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}.")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_one_another_in_a_circle(package):
    root = PACKAGES[package]
    modules = {module_name(path, root): path for path in root.rglob("*.py")}
    imports = {name: modules_imported(path, modules) - {name} for name, path in modules.items()}

    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError with the circle


def module_name(path, root):
    parts = (root.name, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def modules_imported(path, modules):
    """Return the modules that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules.keys()


def test_the_application_has_these_rooms():
    rooms = {p.stem for p in APPLICATION.iterdir() if p.suffix == ".py" or has_modules(p)}

    assert rooms - {"__init__"} == {room for floor in APPLICATION_FLOORS for room in floor}


def has_modules(folder):
    return (folder / "__init__.py").exists()


def test_the_core_has_these_rooms_and_at_most_twenty():
    rooms = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}

    assert rooms - {"__init__"} == set(ROOMS)
    assert len(ROOMS) <= 20
    assert len(FLOORS) <= 8


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
