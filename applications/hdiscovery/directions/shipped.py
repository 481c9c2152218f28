"""Finds runs: in the user's folders, or in the package by name."""

from __future__ import annotations

from pathlib import Path

from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import SHIFT_BLOCK

SHIPPED = Path(__file__).parents[1] / "found"


def shipped_runs() -> dict[str, Path]:
    """Return the published runs that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{SHIFT_BLOCK}"))}


def located(path: Path) -> Path:
    """Return ``path`` or, if nothing is there, the path of the shipped run of that name."""
    return path if path.exists() else shipped_runs().get(str(path), path)


def own_run(path: Path) -> RunFolder:
    """Open a run to write into.

    Raises:
        FileNotFoundError: If there is no run at ``path``. If a shipped run has that name, the error
            says where to copy it from.
    """
    shipped = shipped_runs().get(str(path))
    if shipped is not None and not path.exists():
        raise FileNotFoundError(
            f"{path} comes with the package, and this command writes into the run. Copy {shipped} "
            "to a folder of yours, and pass that folder."
        )
    return RunFolder.open(path)
