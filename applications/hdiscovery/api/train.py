"""Discover directions, by a preset or a recipe with some fields changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.recipe import fields_of, preset, presets, read_recipe
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.progress import Bars, silent
from hdiscovery.training import loop
from hdiscovery.training.start import begun, goes_on, resumed
from hdiscovery.training.world import World, joined

Recipe = DiscoveryConfig | str | Path
Records = Iterable[dict[str, Any]]
Watch = Callable[[Records, int], Records]
"""Wraps a training's records, a dictionary for each step, and is told how many steps there are."""


def train(
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str = "auto",
    watch: Watch | None = None,
    progress: Bars = silent,
    **fields: Any,
) -> Path:
    """Train a run, and return its folder.

    The folder holds ``config.json``, ``records.jsonl`` (a line for each step) and
    ``checkpoint.pt``. A training that stops, by Ctrl-C or a power cut, goes on with ``resume``; on
    a CPU it ends with the same weights, bit for bit, as one that was never stopped. Under
    ``torchrun`` all processes call this function with the same arguments.

    Args:
        recipe: The name of a preset, a TOML file, or a config. None with ``resume`` goes on as the
            run was begun.
        out: The run's folder; by default ``runs/`` and the name of the preset or the file.
        resume: Go on with the run in ``out``. ``fields`` change the run where a run may change; a
            TOML file's fields count as given, a preset's do not.
        device: ``"auto"`` (CUDA, if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        watch: Wraps the records, such as a progress bar. In process 0 alone.
        progress: Makes a progress bar of a name, for the bank of samples.
        fields: Fields of the config to change, such as ``K=8``.

    Returns:
        The run's folder, which :func:`open`, :func:`evaluate` and :func:`gallery` take.

    Raises:
        FileExistsError: If ``out`` holds a run and ``resume`` is false.
        FileNotFoundError: If there is no such file, diffusion model, or run to go on with.
        FloatingPointError: If a loss is not finite; the last good checkpoint is kept.
        ValueError: If a field is unknown, has the wrong type, or cannot change.

    Example:
        >>> import hdiscovery
        >>> run = hdiscovery.train("MNIST32-demo", folder / "run", K=2, M=2, steps=1, batch_size=2,
        ...                        reconstructor="difference", device="cpu")
        >>> sorted(path.name for path in run.iterdir())
        ['begun_by.txt', 'checkpoint.pt', 'config.json', 'history.jsonl', 'records.jsonl']
    """
    path = Path(out) if out is not None else _folder(recipe)
    with joined(device) as world:
        run, config = world.first(lambda: _opened(recipe, path, fields, world, resume=resume))
        bank = progress("bank") if world.leads else iter
        records = loop.train(run, config, world, progress=bank)
        if watch is not None and world.leads:
            records = watch(records, config.all_steps)
        for _ in records:
            pass
    return path


def config_of(recipe: Recipe | None) -> DiscoveryConfig:
    """Return the config that a recipe is.

    Raises:
        FileNotFoundError: If the recipe is not a file.
        ValueError: If there is no such preset, or a field is unknown or wrong.
    """
    if isinstance(recipe, DiscoveryConfig):
        return recipe
    if recipe is None:
        raise ValueError(
            "Neither a preset nor a recipe is given. Name a preset "
            f"({', '.join(presets())}), or pass a TOML file by `--config FILE`."
        )
    file = _file(recipe)
    return preset(str(recipe)) if file is None else read_recipe(file)


def _opened(
    recipe: Recipe | None, out: Path, fields: dict[str, Any], world: World,
    *, resume: bool,
) -> tuple[RunFolder, DiscoveryConfig]:  # fmt: skip
    """Return a new run, or the run in the folder if it is continued."""
    config = None if recipe is None and resume else config_of(recipe)  # refuses what is no recipe
    if config is None or resume or goes_on(out):
        file = _file(recipe)
        return resumed(out, {**({} if file is None else fields_of(file)), **fields}, world)
    return begun(out, config.replace(**fields), world)


def _folder(recipe: Recipe | None) -> Path:
    if recipe is None or isinstance(recipe, DiscoveryConfig):
        raise ValueError("Nothing says where the run is. Pass its folder as `out` (`--out`).")
    file = _file(recipe)
    return Path("runs") / (str(recipe) if file is None else file.stem)


def _file(recipe: Recipe | None) -> Path | None:
    """Return the file that a recipe is named by, None for a preset's name or a config."""
    if isinstance(recipe, str):
        return Path(recipe) if recipe.endswith(".toml") else None
    return recipe if isinstance(recipe, Path) else None
