"""The groups of settings by their names, and in which group each field is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hdiscovery.directions.checked import did_you_mean
from hdiscovery.directions.settings import (
    LossSettings,
    ModelSettings,
    NetworksSettings,
    SamplingSettings,
    ShiftSettings,
)
from hdiscovery.directions.training_settings import (
    MemorySettings,
    OptimizerSettings,
    RunSettings,
    TrainingSettings,
)

GROUPS: dict[str, type] = {
    "model": ModelSettings, "sampling": SamplingSettings, "shift": ShiftSettings,
    "networks": NetworksSettings, "loss": LossSettings, "optimizer": OptimizerSettings,
    "training": TrainingSettings, "memory": MemorySettings, "run": RunSettings,
}  # fmt: skip
GROUP_OF = {leaf.name: group for group, kind in GROUPS.items() for leaf in fields(kind)}


def refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Check that there is a field of each name.

    Raises:
        ValueError: If there is none, with the closest name.
    """
    for name in settings:
        if name not in GROUP_OF:
            raise ValueError(
                f"`{name}` is not a field of a run.{did_you_mean(name, GROUP_OF)} Fields are: "
                f"{', '.join(GROUP_OF)}."
            )


def from_tables(entries: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields that tables hold, by their names alone.

    A field may also stand outside its table: configs of earlier versions have no tables.

    Args:
        entries: Tables by group, such as ``{"shift": {"K": 8}}``, or fields.
        source: Where they are from, for an error.

    Raises:
        ValueError: If a table or a field is unknown, or a field stands there twice.
    """
    found: dict[str, Any] = {}
    for key, value in entries.items():
        table = key if key in GROUPS else ""
        if table and not isinstance(value, Mapping):
            raise ValueError(f"{source}: `{key}` is a table of fields, got {value!r}.")
        for name, inner in value.items() if table else [(key, value)]:
            _refuse_misplaced(name, table, found, source)
            found[name] = inner
    return found


def _refuse_misplaced(name: str, table: str, found: Mapping[str, Any], source: str) -> None:
    path = f"{table}.{name}" if table else name
    own = f"{GROUP_OF.get(name)}.{name}"
    if name in found:
        raise ValueError(f"{source} has the field `{own}` twice.")
    if name in GROUP_OF and table in ("", GROUP_OF[name]):
        return
    known = [own] if name in GROUP_OF else [f"{group}.{leaf}" for leaf, group in GROUP_OF.items()]
    names = {each.rpartition(".")[2]: each for each in known}
    close = did_you_mean(name, names)
    for leaf, full in names.items():
        close = close.replace(f"`{leaf}`", f"`{full}`")
    raise ValueError(
        f"{source} has the unknown field `{path}`.{close or did_you_mean(path, GROUPS)}"
    )
