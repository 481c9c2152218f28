"""The user's names of directions: ``labels.json`` in a run's folder."""

from __future__ import annotations

from typing import Any

from hdiscovery.directions.run_folder import RunFolder

LABELS = "labels.json"


def read_labels(run: RunFolder, *, K: int) -> dict[int, str]:
    """Return the labels of ``labels.json`` by direction; nothing without such a file.

    Raises:
        ValueError: If the file is not what the page saves.
    """
    path = run.path / LABELS
    if not path.exists():
        return {}
    labels = _read(run)
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise ValueError(f'{path} must map directions to words, as {{"3": "thickness"}} does.')
    known = {str(k): k for k in range(K)}
    if unknown := [k for k in labels if k not in known]:
        raise ValueError(
            f"{path} names the direction {unknown[0]!r}, and the run has 0 … {K - 1}. Likely it is "
            "another run's file. Remove the entry, or take the right file."
        )
    return {known[k]: text for k, text in labels.items()}


def _read(run: RunFolder) -> Any:
    try:
        return run.read_json(LABELS)
    except ValueError as error:
        raise ValueError(f"{run.path / LABELS} is not JSON: {error}.") from error
