"""Unsupervised discovery of interpretable directions in h-space, on top of chainograd.

What the commands do can be called from Python: :func:`train` a run, :func:`open` its directions,
:func:`evaluate` and :func:`rank` them, :func:`invert` and :func:`edit` images, write a
:func:`gallery`. A command reads its options, calls the function of its name, and prints.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdiscovery.api.edit import edit as edit
    from hdiscovery.api.evaluate import evaluate as evaluate
    from hdiscovery.api.evaluate import rank as rank
    from hdiscovery.api.gallery import gallery as gallery
    from hdiscovery.api.invert import invert as invert
    from hdiscovery.api.open import open as open
    from hdiscovery.api.train import train as train

__all__ = ["edit", "evaluate", "gallery", "invert", "open", "rank", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for.

    ``import hdiscovery`` is therefore fast, and needs no library of the extra.
    """
    if name not in __all__:
        raise AttributeError(f"module 'hdiscovery' has no attribute {name!r}")
    from hdiscovery.extra import needs_extra

    with needs_extra():
        module = import_module(f"hdiscovery.api.{'evaluate' if name == 'rank' else name}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
