"""The fields of a config as a command's help shows them."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import MISSING, fields
from typing import Any


def described(config: Any) -> str:
    """Return a line or more for each field of a dataclass: its option, default and meaning.

    The meaning is what the docstring's ``Attributes`` say of it.

    Args:
        config: The dataclass.

    Raises:
        KeyError: If the docstring leaves a field out.
    """
    texts = attributes(config)
    lines = []
    for field in fields(config):
        option = f"--{field.name.replace('_', '-')}"
        default = "" if field.default is MISSING else f" [{field.default}]"
        text = texts[field.name].replace("``", "")
        lines.append(f"  {option}{default}")
        lines += textwrap.wrap(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def attributes(config: Any) -> dict[str, str]:
    """Return what a class's Google-style docstring says of each attribute, in one line each."""
    _, _, section = (inspect.getdoc(config) or "").partition("Attributes:\n")
    section = re.split(r"\n(?=\S)", section)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n(?:        .*|\s*$))*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def summary(config: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(config) or "").partition("\n")[0]
