"""Recipes: TOML files with a table for each group of settings. The presets are such files."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from hdiscovery.describe import attributes
from hdiscovery.directions.checked import did_you_mean
from hdiscovery.directions.config import DiscoveryConfig, config_of
from hdiscovery.directions.groups import GROUPS, from_tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


def presets() -> dict[str, Any]:
    """Return the preset files by name."""
    folder = resources.files("hdiscovery") / "presets"
    return {f.name[: -len(".toml")]: f for f in folder.iterdir() if f.name.endswith(".toml")}


def preset(name: str) -> DiscoveryConfig:
    """Return a preset's config; its ``dm`` is empty if the diffusion model is not shipped.

    Raises:
        ValueError: If there is no such preset, or its file has an unknown field.
    """
    if name not in presets():
        raise ValueError(
            f"`preset` {name!r} is unknown.{did_you_mean(name, presets())} There are: "
            f"{', '.join(presets())}. `--config FILE` takes a recipe of your own."
        )
    return config_of(tomllib.loads(presets()[name].read_text()), f"Preset {name!r}")


def from_preset(name: str, **changes: Any) -> DiscoveryConfig:
    """Return a preset's config, with some fields replaced.

    Raises:
        ValueError: If there is no such preset, it has an unknown field, or it needs a ``dm``.

    Example:
        >>> from_preset("MNIST32-400-20-32-5", K=8).shift.K
        8
    """
    config = preset(name).replace(**changes)
    refuse_no_model(config, f"Preset {name!r}")
    return config


def refuse_no_model(config: DiscoveryConfig, source: str) -> None:
    """Check that a config names a diffusion model.

    Raises:
        ValueError: If it names none.
    """
    if not config.model.dm:
        raise ValueError(
            f"{source} needs its diffusion model, which is not shipped: pass `--dm FILE`. "
            "`hdiscovery convert` makes such a file of published ADM and PDAE weights."
        )


def read_recipe(path: Path) -> DiscoveryConfig:
    """Return the config that a recipe describes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not TOML, or a field is unknown, has the wrong type or is out of
            range.
    """
    return config_of(_tables(path), str(path))


def fields_of(path: Path) -> dict[str, Any]:
    """Return the fields that a recipe names, without those that it leaves out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not TOML, or a field is unknown.
    """
    return from_tables(_tables(path), str(path))


def as_toml(config: DiscoveryConfig) -> str:
    """Return a config as a recipe that `read_recipe` reads again, every field with its meaning.

    TOML has no value for "not set": such a field is a comment.

    Example:
        >>> print(as_toml(DiscoveryConfig()).splitlines()[-1])
        save_every = 100  # Steps between checkpoints. A run keeps two checkpoints.
    """
    lines = []
    for group, kind in GROUPS.items():
        lines += ["", f"[{group}]"]
        for name, text in attributes(kind).items():
            value = getattr(getattr(config, group), name)
            shown = f"# {name} is not set" if value is None else f"{name} = {_literal(value)}"
            lines.append(f"{shown}  # {text}")
    return "\n".join(lines[1:])


def _literal(value: object) -> str:
    """Return a text, a number or a truth value as TOML, which writes them as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _tables(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"`config` {path} is not a file. A recipe is a TOML file; `hdiscovery train PRESET "
            "--dry-run` prints one."
        )
    try:
        tables = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`config` {path} is not TOML: {error}.") from error
    if not tables:
        raise ValueError(f"`config` {path} names no field of a run: it is no recipe.")
    return tables
