"""Imports run one way, tests mirror the packages, and the reference shows what is public."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

import chainograd

ROOT = Path(chainograd.__file__).parent
# A room is a package or a module of the core. It imports rooms of the floors above it in this list.
FLOORS = (
    ("errors", "plans", "torch_internals"),
    ("captured", "samplers", "tensors"),
    ("metering", "replay", "state"),
    ("blocks", "frozen", "report", "storage", "truncation"),
    ("engine", "options"),
    ("preflight", "trajectory"),
    ("chain",),
    ("adapters",),
)
ROOMS = [room for floor in FLOORS for room in floor]
APPLICATION = ROOT.parent / "applications" / "hdiscovery"
# The same for the application; `commands` and `api` come last, as they use all the others.
APPLICATION_FLOORS = (
    ("data", "describe", "dm", "extra", "progress"),
    ("networks",),
    ("directions", "rescale"),
    ("editing", "training"),
    ("evaluation",),
    ("pages", "refit"),
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


def test_every_folder_of_tests_is_a_room_of_the_core():
    tests = ROOT.parent / "tests" / "chainograd"
    folders = {path.parent.relative_to(tests).parts[:1] for path in tests.rglob("*.py")}

    assert folders - {()} <= {(room,) for room in ROOMS}


def test_no_test_imports_another():
    imports = re.compile(r"^(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    tests = (ROOT.parent / "tests").rglob("*.py")

    assert not [path for path in tests if imports.search(path.read_text())]


def test_a_public_name_is_never_that_of_a_module():
    rooms = {room for floor in APPLICATION_FLOORS for room in floor}

    assert not set(chainograd.__all__) & set(ROOMS)
    assert not set(import_module("hdiscovery").__all__) & rooms


def test_only_one_room_knows_private_names_of_torch():
    found = {
        path.relative_to(ROOT): private
        for path in ROOT.rglob("*.py")
        if path.parent.name != "torch_internals"
        and (private := private_names_of_torch(ast.parse(path.read_text())))
    }

    assert not found, "import these from chainograd.torch_internals"


@pytest.mark.parametrize(
    "code",
    [
        "import torch.utils._pytree",
        "from torch._C import _functorch",
        "from torch.overrides import _get_current_function_mode_stack",
        "torch.nn.modules.batchnorm._NormBase",
        "run(torch._C)",
        "tensor._version + 1",
        "module._buffers[0]",
        "storage.untyped_storage()._cdata",
        "node._saved_input",
        "getattr(node, '_saved_input', None)",
        "getattr(node, f'_raw_saved_{name}')",
        "tensor.grad_fn._register_hook_dict(tensor)",
        "function._torchdynamo_disable",
    ],
)
def test_a_private_name_of_torch_is_noticed(code):
    assert private_names_of_torch(ast.parse(code))


@pytest.mark.parametrize(
    "code", ["self._known", "state._replace(leaves=())", "torch.nn.Module", "x.__dict__", "_of(x)"]
)
def test_a_name_that_is_not_private_to_torch_is_let_through(code):
    assert not private_names_of_torch(ast.parse(code))


# Private attributes that `dir` does not show on the objects of `private_attributes`.
HIDDEN = {"_execution_engine", "_torchdynamo_disable", "_torchdynamo_orig_callable", "_orig_mod",
          "_forward_cls", "_unsharded_param", "_fsdp_param_group", "_fsdp_param_groups",
          "_get_fsdp_state", "_cache_enabled", "_min_seqlen_tensor", "_max_seqlen_tensor",
          "_c"}  # fmt: skip


def private_names_of_torch(tree):
    """Return the private names of torch that code reads, as far as names tell."""
    return {name for node in ast.walk(tree) for name in names_read(node) if is_private(name)}


def names_read(node):
    """Yield the names that a node reads: dotted ones from torch, attributes, and strings."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield ast.unparse(node)
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        yield "" if own else node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def is_private(name):
    """Return whether a name is private to torch: under a private module, or an attribute."""
    if name.startswith("torch."):
        return any(re.match("_(?!_)", part) for part in name.split("."))
    return name in private_attributes() or name.startswith(("_saved_", "_raw_saved_"))


@cache
def private_attributes():
    """Return private attributes of torch's tensors, storages, modules, graph nodes and contexts."""
    x = torch.ones(1, requires_grad=True)
    things = (x, x.untyped_storage(), torch.nn.Linear(1, 1), (x * x).grad_fn, torch._C, torch.mps)
    named = {name for thing in things for name in dir(thing) if re.match("_(?!_)", name)}
    return named | HIDDEN


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


def test_the_drawing_for_contributors_shows_every_room_on_its_floor():
    page = (ROOT.parent / "CONTRIBUTING.md").read_text()
    drawn = re.findall(r"^  (\d)   ((?:\w+ {1,2})*\w+)", page, re.MULTILINE)

    floors = tuple(tuple(rooms.split()) for _, rooms in reversed(drawn))
    assert floors == FLOORS
    assert [int(number) for number, _ in drawn] == list(range(len(FLOORS), 0, -1))


def test_a_note_that_is_cited_is_there():
    texts = [path.read_text() for root in PACKAGES.values() for path in root.rglob("*.py")]
    written = {name for text in texts for name in re.findall(r"^(?:# )?Note \[(.+?)\]", text, re.M)}
    cited = {name for text in texts for name in re.findall(r"\bnote \[(.+?)\]", text)}

    assert cited <= written
