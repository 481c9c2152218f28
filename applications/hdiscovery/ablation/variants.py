"""The variants that an ablation compares: a recipe with some fields changed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.groups import from_tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Variants = dict[str, dict[str, Any]]  # fields that are changed, by the variant's name

# Section 5.6 and Fig. 3 of the paper, and the alternatives to its other choices.
PAPER: Variants = {
    "paper": {},
    "no-discriminator": {"lambda_G": 0.0},
    "l1-only": {"lambda_G": 0.0, "lambda_l1": 1.0},
    "symmetric": {"update": "symmetric"},
    "time-invariant": {"time_invariant": True},
    "min-shift": {"min_shift": 0.5},
    "lazy-adam": {"adam": "lazy"},
}


def read_variants(path: Path) -> Variants:
    """Read variants from a TOML file with one table each, ``[name]`` and its fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not TOML, or holds no table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`variants` {path} is not a file.")
    try:
        variants = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"`variants` {path} is not TOML: {error}.") from error
    if not variants or not all(isinstance(changes, Mapping) for changes in variants.values()):
        raise ValueError(
            f"`variants` {path} must hold one table a variant, such as `[l1-only]` with a line "
            "`lambda_l1 = 1.0` below it."
        )
    return variants


def configs(base: DiscoveryConfig, variants: Variants) -> dict[str, DiscoveryConfig]:
    """Return each variant's config.

    Raises:
        ValueError: If a field is unknown or out of range, a name cannot be a folder's, or two
            variants are the same.
    """
    found: dict[str, DiscoveryConfig] = {}
    for name, changes in variants.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise ValueError(
                f"A variant's name is that of its folder: letters, digits, `_.+-`; got {name!r}."
            )
        settings = from_tables(changes, f"Variant {name!r}")
        try:
            found[name] = base.replace(**settings)
        except ValueError as error:
            raise ValueError(f"Variant {name!r}: {error}") from error
    for name, config in found.items():
        same = [other for other in found if other != name and found[other] == config]
        if same:
            raise ValueError(f"Variants {name!r} and {same[0]!r} are the same. Leave one out.")
    return found
