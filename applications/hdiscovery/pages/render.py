"""HTML pages that need no network: templates with their style and script inside."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def render(folder: str, name: str, **values: Any) -> str:
    """Return the page of ``name.html.jinja``, with ``name.css`` and ``name.js`` embedded.

    All values are escaped. A content security policy lets the page run only that script, which it
    identifies by its hash. Even text that got through as markup could not run.

    Args:
        folder: Folder of the package ``hdiscovery``.
        name: Name of the template, of its style and of its script.
        values: Values of the template's variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hdiscovery", folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(shift=shift, fact=fact)
    style, script = (_text(folder, f"{name}.{kind}") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(f"{name}.html.jinja").render(
        style=Markup(style),  # ours, not the user's
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        **values,
    )


def data_uri(picture: bytes) -> str:
    """Return a WebP as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file and return its path; an old file is replaced only by a complete new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    return partial.replace(path)


def shift(s: float) -> str:
    """Return a shift as text, with its sign.

    Example:
        >>> shift(-2.5), shift(0.0), shift(5)
        ('−2.5', '0', '+5')
    """
    return format(s, "+.3g").replace("-", "−") if s else "0"


def fact(value: str | float) -> str:
    """Return a value as text, with separated thousands or four digits.

    Example:
        >>> fact(20_000), fact(0.69314718), fact("lenet")
        ('20,000', '0.6931', 'lenet')
    """
    if isinstance(value, str):
        return value
    return format(value, ",.0f" if float(value).is_integer() else ".4g").replace("-", "−")


def _text(folder: str, name: str) -> str:
    file = resources.files("hdiscovery") / folder / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""
