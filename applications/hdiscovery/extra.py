"""The libraries of the extra ``hdiscovery``, and what is said where one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# As they are imported, which is not always as they are installed.
LIBRARIES = ("PIL", "jinja2", "markupsafe", "matplotlib", "pydantic", "safetensors", "tomli",
             "torchmetrics", "torchvision", "tqdm", "tyro")  # fmt: skip


@contextmanager
def needs_extra() -> Iterator[None]:
    """Name the extra where one of its libraries is not installed.

    Raises:
        ImportError: If a library is missing, with how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        raise ImportError(
            f"`hdiscovery` needs the library {library}, which is not installed. Install what "
            "hdiscovery needs: pip install 'chainograd[hdiscovery]'"
        ) from error
