"""All cases of the table, by kind."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from tests.correctness import (
    autocast,
    derivatives,
    hooks,
    kept,
    layouts,
    modules,
    noise,
    parallel,
    states,
    surroundings,
    weights,
)
from tests.correctness.case import Case

KINDS: dict[str, ModuleType] = {
    "Random numbers": noise,
    "Autocast": autocast,
    "Order in memory": layouts,
    "Hooks": hooks,
    "What steps keep": kept,
    "States": states,
    "Modules": modules,
    "Weights": weights,
    "Surroundings": surroundings,
    "Derivatives": derivatives,
    "Many processes": parallel,
}
CASES = tuple(
    thing for module in KINDS.values() for thing in vars(module).values() if isinstance(thing, Case)
)


def missing(case: Case) -> str:
    """Return what a case needs and is not there, or nothing."""
    module, _, name = case.needs.partition(":")
    try:
        there = not module or name in ("", *dir(import_module(module)))
    except ImportError:
        there = False
    return "" if there else case.needs
