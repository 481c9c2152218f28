"""A run without what only its training needs: its directions, and what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hdiscovery.config import run_config
from hdiscovery.discovery import Discovery
from hdiscovery.run import RunFolder
from hdiscovery.train import open_run, trained_steps

FILE = "shift_block.safetensors"
FORMAT = "hdiscovery-shift-block-1"
SHIPPED = Path(__file__).with_name("found")
MEASURED = ("rca.json", "ranking.json", "evaluation.json", "labels.json")


class LeftBehind(nn.Module):
    """What a published run has in place of its reconstructor and its discriminator."""

    def forward(self, *_: Tensor) -> Tensor:
        """Refuse."""
        raise ValueError(
            "A published run has its directions alone: the reconstructor and the discriminator "
            "stayed with the run. What they measured is in rca.json and evaluation.json."
        )


def shipped_runs() -> dict[str, Path]:
    """Return the published runs that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{FILE}"))}


def located(path: Path) -> Path:
    """Return where a run is: ``path``, or where nothing is there, the shipped run of that name."""
    return path if path.exists() else shipped_runs().get(str(path), path)


def is_published(run: RunFolder) -> bool:
    """Return whether a folder holds a published run."""
    return (run.path / FILE).is_file()


def publish(run: RunFolder, out: Path, *, dtype: torch.dtype = torch.float16) -> RunFolder:
    """Write a run's shift block, config, records and whatever was measured of it.

    Means and calibrated strengths are measured from what is written, rounding included:
    ``hdiscovery directions OUT``.

    Args:
        run: A run with a checkpoint whose RCA was measured.
        out: A new folder.
        dtype: Precision of the shift block's file.

    Raises:
        FileExistsError: If there is a run at ``out``.
        ValueError: If the run has no checkpoint, or its RCA was not measured.
    """
    if not (run.path / "rca.json").is_file():
        raise ValueError(
            f"The RCA of {run.path} was not measured, and a published run has no reconstructor to "
            "measure it by. First: `hdiscovery evaluate RUN --only rca`."
        )
    block = open_run(run).shift_block
    published = RunFolder.create(out, run.read_json("config.json"))
    for name in MEASURED:
        if (run.path / name).is_file():
            published.write_json(name, run.read_json(name))
    published.write_text("records.jsonl", "".join(map(_short, run.records())))
    tensors = {name: value.to(dtype).contiguous() for name, value in block.state_dict().items()}
    metadata = {"format": FORMAT, "step": str(trained_steps(run))}
    partial = out / f"{FILE}.partial"
    save_file(tensors, partial, metadata=metadata)
    partial.replace(out / FILE)
    return published


def open_directions(run: RunFolder, *, device: torch.device | str = "cpu") -> tuple[Discovery, int]:
    """Return the networks of a run, published or not, and the training steps behind them.

    Raises:
        ValueError: If the run has no checkpoint, or its file is damaged.
    """
    if not is_published(run):
        return open_run(run, device=device), trained_steps(run)
    discovery = Discovery.build(run_config(run), device=device)
    path = run.path / FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
        discovery.shift_block.load_state_dict(state)
        step = int(metadata["step"])
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a published shift block: {error}.") from error
    discovery.R, discovery.D = LeftBehind(), LeftBehind()
    return discovery, step


def _short(record: dict[str, Any]) -> str:
    """Return a line of a record to five digits, without its seconds."""
    kept = {name: value for name, value in record.items() if name != "seconds"}
    return json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                       for k, v in kept.items()}) + "\n"  # fmt: skip
