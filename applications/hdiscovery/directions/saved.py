"""Loads the networks of a run: from a checkpoint or, of a published run, from two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hdiscovery.directions.config import run_config
from hdiscovery.directions.history import open_model
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.run_networks import RunNetworks

FORMAT = "hdiscovery-checkpoint-2"
SHIFT_BLOCK, RECONSTRUCTOR = "shift_block.safetensors", "reconstructor.safetensors"
FORMATS = {SHIFT_BLOCK: "hdiscovery-shift-block-1", RECONSTRUCTOR: "hdiscovery-reconstructor-1"}


class LeftBehind(nn.Module):
    """Stands where a published run has no discriminator."""

    def forward(self, *_: Tensor) -> Tensor:
        """Refuse."""
        raise ValueError(
            "A published run has no discriminator: it stayed with the run that was published. Its "
            "losses are in records.jsonl."
        )


def is_published(run: RunFolder) -> bool:
    """Return whether a folder holds a published run."""
    return (run.path / SHIFT_BLOCK).is_file()


def open_networks(run: RunFolder, *, device: torch.device | str = "cpu") -> tuple[RunNetworks, int]:
    """Return the networks of a run, published or not, and the training steps behind them.

    Raises:
        ValueError: If the run has no checkpoint, one of its files is damaged, or its diffusion
            model is not the model that it was trained with.
    """
    if not is_published(run):
        return open_run(run, device=device), trained_steps(run)
    networks = _built(run, device)
    step = _load(networks.shift_block, run.path / SHIFT_BLOCK)
    _load(networks.R, run.path / RECONSTRUCTOR)
    networks.D = LeftBehind()
    return networks, step


def open_run(run: RunFolder, *, device: torch.device | str = "cpu") -> RunNetworks:
    """Return the networks of a run's last checkpoint; of the shift block its average, if kept.

    Raises:
        ValueError: If the run has no checkpoint yet, or its diffusion model is not the model that
            it was trained with.
    """
    networks = _built(run, device)
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        raise ValueError(
            f"The run {run.path} has no checkpoint yet. Train it on with `hdiscovery train --out "
            f"{run.path} --resume`; `--save-every` sets how often a checkpoint is written."
        )
    load_networks(networks, checkpoint)
    if checkpoint["average"] is not None:
        networks.shift_block.load_state_dict(averaged(checkpoint["average"]))
    return networks


def trained_steps(run: RunFolder) -> int:
    """Return the number of training steps behind a run's checkpoint; 0 without a checkpoint."""
    checkpoint = run.load_checkpoint()
    return checkpoint["step"] if checkpoint else 0


def load_networks(networks: RunNetworks, state: dict[str, Any]) -> None:
    """Load the three networks of a checkpoint as they were trained.

    Raises:
        ValueError: If another version wrote it.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"The run's checkpoint has the format {state.get('format')!r}, expected {FORMAT!r}: "
            "another version of hdiscovery wrote it. Use that one, or begin the run anew."
        )
    networks.shift_block.load_state_dict(state["shift_block"])
    networks.R.load_state_dict(state["R"])
    networks.D.load_state_dict(state["D"])


def averaged(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of the shift block that an average of it holds."""
    prefix = "module."
    return {name.removeprefix(prefix): v for name, v in average.items() if name.startswith(prefix)}


def _built(run: RunFolder, device: torch.device | str) -> RunNetworks:
    """Return a run's networks as they are before anything is loaded."""
    config = run_config(run)
    return RunNetworks.build(config, open_model(run, config, device=device), device=device)


def _load(net: nn.Module, path: Path) -> int:
    """Load a network from its file; return the training steps behind it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = FORMATS[path.name]
        if metadata.get("format") != expected:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {expected!r}")
        net.load_state_dict(state)
        return int(metadata["step"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        what = path.stem.replace("_", " ")
        raise ValueError(f"{path} is not a published {what}: {error}.") from error
