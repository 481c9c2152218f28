"""What the docstring of a config says of its fields, for help and recipes."""

from __future__ import annotations

import inspect
import re
from typing import Any


def attributes(config: Any) -> dict[str, str]:
    """Return what a class's Google-style docstring says of each attribute, in one line each."""
    _, _, section = (inspect.getdoc(config) or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n(?:        .*|\s*$))*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def summary(config: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(config) or "").partition("\n")[0]
