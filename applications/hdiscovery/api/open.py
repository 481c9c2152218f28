"""Open the directions of a run, a published run or a portable file."""

from __future__ import annotations

from pathlib import Path

from hdiscovery.directions.direction_set import DirectionSet, Kind
from hdiscovery.directions.open import open_directions
from hdiscovery.dm.device import device_of


def open(
    path: str | Path,
    *,
    kind: Kind | None = None,
    dm: str | None = None,
    another_dm: bool = False,
    device: str = "auto",
) -> DirectionSet:
    """Open the directions of a run, a published run or a portable file; all open the same way.

    Args:
        path: A run's folder, the name of a run that comes with the package (``digits``), or a
            ``directions.safetensors``.
        kind: ``"direct"`` is the shift block of a run, ``"mean"`` and ``"global"`` are its means.
            By default direct for a run, and mean for a file, or global if the file has no mean.
        dm: For a file: the diffusion model to take instead of the one that the file names.
        another_dm: For a file: allow a diffusion model that the directions were not found in.
        device: ``"auto"`` (CUDA, if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …

    Returns:
        The directions with their diffusion model, labels and scores.

    Raises:
        FileNotFoundError: If there is nothing at ``path``, or a run has no file of means yet.
        ValueError: If ``kind`` is not there, or the diffusion model is another one.

    Example:
        >>> import hdiscovery
        >>> directions = hdiscovery.open("digits", device="cpu")
        >>> directions.about.K, directions.kind
        (32, 'direct')
    """
    return open_directions(Path(path), kind, dm=dm, another_dm=another_dm, device=device_of(device))
