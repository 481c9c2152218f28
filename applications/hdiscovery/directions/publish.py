"""Publishes a run: its directions, its reconstructor and its measures, without the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hdiscovery.directions.history import enter_published
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import (
    FORMATS,
    RECONSTRUCTOR,
    SHIFT_BLOCK,
    open_run,
    trained_steps,
)
from hdiscovery.dm.tensors import save_tensors

MEASURED = ("rca.json", "ranking.json", "evaluation.json", "labels.json")


def publish(run: RunFolder, out: Path, *, dtype: torch.dtype = torch.float16) -> RunFolder:
    """Write a run's shift block, reconstructor, config, records and what was measured of it.

    Means and calibrated strengths are measured from what is written, rounding included:
    ``hdiscovery publish OUT --to file``.

    Args:
        run: A run with a checkpoint whose RCA was measured.
        out: A new folder.
        dtype: Precision of the files. RCA in half precision is the run's but for rounding.

    Raises:
        FileExistsError: If there is a run at ``out``.
        ValueError: If the run has no checkpoint, its RCA was not measured, or something was
            measured of another checkpoint.
    """
    networks, step = open_run(run), trained_steps(run)
    _refuse_unmeasured(run, step)
    published = RunFolder.create(out, run.read_json("config.json"))
    enter_published(published, networks.config, networks.dm, step)
    for name in MEASURED:
        if (run.path / name).is_file():
            published.write_json(name, run.read_json(name))
    # A training that was stopped has recorded steps after its last checkpoint.
    records = (record for record in run.records() if record["step"] < step)
    published.write_text("records.jsonl", "".join(map(_short, records)))
    # The shift block last: its file is what makes a folder a published run.
    for name, net in ((RECONSTRUCTOR, networks.R), (SHIFT_BLOCK, networks.shift_block)):
        _save(out / name, net, step, dtype)
    return published


def _refuse_unmeasured(run: RunFolder, step: int) -> None:
    if not (run.path / "rca.json").is_file():
        raise ValueError(
            f"The RCA of {run.path} was not measured, and a published run says it. First: "
            "`hdiscovery evaluate RUN --only rca`."
        )
    for name in MEASURED:
        of = run.read_json(name).get("step", step) if (run.path / name).is_file() else step
        if of != step:
            raise ValueError(
                f"{run.path / name} was measured after step {of}, and the run is at step {step}. "
                "Measure again (`hdiscovery evaluate`), or remove that file."
            )


def _save(path: Path, net: nn.Module, step: int, dtype: torch.dtype) -> None:
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    save_tensors(path, tensors, metadata={"format": FORMATS[path.name], "step": str(step)})


def _short(record: dict[str, Any]) -> str:
    """Return a line of a record to five digits, without its seconds."""
    kept = {name: value for name, value in record.items() if name != "seconds"}
    return json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v
                       for k, v in kept.items()}) + "\n"  # fmt: skip
