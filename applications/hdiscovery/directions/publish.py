"""A run without what only its training needs: its directions, R, and what was measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hdiscovery.directions.config import run_config
from hdiscovery.directions.discovery import Discovery
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.dm.tensors import save_tensors
from hdiscovery.train.loop import open_run, trained_steps

FILE, RECONSTRUCTOR = "shift_block.safetensors", "reconstructor.safetensors"
FORMATS = {FILE: "hdiscovery-shift-block-1", RECONSTRUCTOR: "hdiscovery-reconstructor-1"}
SHIPPED = Path(__file__).parents[1] / "found"
MEASURED = ("rca.json", "ranking.json", "evaluation.json", "labels.json")


class LeftBehind(nn.Module):
    """What a published run has in place of its discriminator."""

    def forward(self, *_: Tensor) -> Tensor:
        """Refuse."""
        raise ValueError(
            "A published run has its directions and its reconstructor: the discriminator stayed "
            "with the run. What it said in training is in records.jsonl."
        )


def shipped_runs() -> dict[str, Path]:
    """Return the published runs that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{FILE}"))}


def located(path: Path) -> Path:
    """Return where a run is: ``path``, or where nothing is there, the shipped run of that name."""
    return path if path.exists() else shipped_runs().get(str(path), path)


def own_run(path: Path) -> RunFolder:
    """Open a run to write into.

    Raises:
        FileNotFoundError: If there is none at ``path``; if a shipped run is called so, with where
            to copy it from.
    """
    shipped = shipped_runs().get(str(path))
    if shipped is not None and not path.exists():
        raise FileNotFoundError(
            f"{path} comes with the package, and this command writes into the run: copy {shipped} "
            "to a folder of yours, and name that."
        )
    return RunFolder.open(path)


def is_published(run: RunFolder) -> bool:
    """Return whether a folder holds a published run."""
    return (run.path / FILE).is_file()


def publish(run: RunFolder, out: Path, *, dtype: torch.dtype = torch.float16) -> RunFolder:
    """Write a run's shift block, reconstructor, config, records and what was measured of it.

    Means and calibrated strengths are measured from what is written, rounding included:
    ``hdiscovery directions OUT``.

    Args:
        run: A run with a checkpoint whose RCA was measured.
        out: A new folder.
        dtype: Precision of the files. RCA in half precision is the run's but for rounding.

    Raises:
        FileExistsError: If there is a run at ``out``.
        ValueError: If the run has no checkpoint, its RCA was not measured, or something was
            measured of another checkpoint.
    """
    if not (run.path / "rca.json").is_file():
        raise ValueError(
            f"The RCA of {run.path} was not measured, and a published run says it. First: "
            "`hdiscovery evaluate RUN --only rca`."
        )
    discovery, step = open_run(run), trained_steps(run)
    for name in MEASURED:
        of = run.read_json(name).get("step", step) if (run.path / name).is_file() else step
        if of != step:
            raise ValueError(
                f"{run.path / name} was measured after step {of}, and the run is at step {step}. "
                "Measure again (`hdiscovery evaluate` and `rank`), or remove that file."
            )
    published = RunFolder.create(out, run.read_json("config.json"))
    for name in MEASURED:
        if (run.path / name).is_file():
            published.write_json(name, run.read_json(name))
    # A training that was stopped has recorded steps after its last checkpoint.
    records = (record for record in run.records() if record["step"] < step)
    published.write_text("records.jsonl", "".join(map(_short, records)))
    # The shift block last: its file is what makes a folder a published run.
    for name, net in ((RECONSTRUCTOR, discovery.R), (FILE, discovery.shift_block)):
        tensors = {key: value.to(dtype if value.is_floating_point() else value.dtype)
                   for key, value in net.state_dict().items()}  # fmt: skip
        save_tensors(out / name, tensors, metadata={"format": FORMATS[name], "step": str(step)})
    return published


def open_directions(run: RunFolder, *, device: torch.device | str = "cpu") -> tuple[Discovery, int]:
    """Return the networks of a run, published or not, and the training steps behind them.

    Raises:
        ValueError: If the run has no checkpoint, or its file is damaged.
    """
    if not is_published(run):
        return open_run(run, device=device), trained_steps(run)
    discovery = Discovery.build(run_config(run), device=device)
    step = _load(discovery.shift_block, run.path / FILE)
    _load(discovery.R, run.path / RECONSTRUCTOR)
    discovery.D = LeftBehind()
    return discovery, step


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


def _short(record: dict[str, Any]) -> str:
    """Return a line of a record to five digits, without its seconds."""
    kept = {name: value for name, value in record.items() if name != "seconds"}
    return json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                       for k, v in kept.items()}) + "\n"  # fmt: skip
