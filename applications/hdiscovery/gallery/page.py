"""Draws strips of shifted samples and writes them as one self-contained page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from hdiscovery.evaluate.rca import Accuracy
from hdiscovery.train import Discovery


def draw_strips(
    discovery: Discovery, k: int, *, samples: int = 4, shifts: Sequence[float], seed: int = 7
) -> Tensor:
    """Return samples along direction k, the same ones for every k.

    Returns:
        ``[samples, len(shifts), C, H, W]`` in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(samples, *discovery.dm.image_shape, generator=generator)
    count = len(shifts)
    s = torch.tensor(list(shifts), dtype=x_T.dtype).repeat(samples)
    with torch.no_grad():
        x_0 = discovery.shifted(
            x_T.repeat_interleave(count, 0), torch.full((samples * count,), k), s
        )
    return x_0.clamp(-1, 1).view(samples, count, *x_0.shape[1:])


def write_gallery(discovery: Discovery, folder: Path, records: list[dict[str, Any]],
                  accuracy: Accuracy, *, samples: int = 4, columns: int = 7) -> Path:  # fmt: skip
    """Write ``index.html`` with a strip per direction, best recognised first.

    Args:
        discovery: The trained networks.
        folder: Where to write.
        records: The run's records, for the curves.
        accuracy: The run's measured accuracy.
        samples: Samples per direction.
        columns: Shifts per strip, odd, so that the middle one is the sample itself.

    Returns:
        The page's path.

    Raises:
        ValueError: If ``columns`` is even.
    """
    if columns % 2 == 0:
        raise ValueError(f"`columns` must be odd, for s = 0 in the middle, got {columns}.")
    config = discovery.config
    half = columns // 2
    shifts = [config.S * (j - half) / half for j in range(columns)]
    directions = [
        {
            "k": k,
            "accuracy": recall,
            "image": _png(draw_strips(discovery, k, samples=samples, shifts=shifts)),
        }
        for k, recall in enumerate(accuracy.of_direction)
    ]
    directions.sort(key=lambda d: -1.0 if d["accuracy"] is None else d["accuracy"], reverse=True)
    last = records[-10:]
    facts = {
        "RCA": f"{accuracy.rca:.2f} (chance {1 / config.K:.2f})",
        "shift error": f"{accuracy.shift_error:.2f} (S/2 = {config.S / 2:g})",
        "L_G": f"{sum(r['L_G'] for r in last) / max(len(last), 1):.3f} (ln 2 = 0.693)",
        "steps": len(records),
        **{name: asdict(config)[name] for name in ("K", "S", "M", "t_stop", "batch_size", "dm")},
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hdiscovery", "gallery"), autoescape=True
    )
    page = environment.get_template("page.html.jinja").render(
        title=f"Directions of {config.dm}",
        facts=facts,
        shifts=shifts,
        directions=directions,
        curves=draw_curves(records, K=config.K, S=config.S),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def draw_curves(records: Sequence[Mapping[str, float]], *, K: int, S: float) -> str:
    """Return the training curves, with what chance would give, as a data URI."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    wanted = (
        ("L_G", math.log(2), "ln 2"),
        ("cross_entropy", math.log(K), "ln K"),
        ("shift_error", S / 2, "S/2"),
    )
    for axes, (name, level, label) in zip(figure.subplots(1, 3), wanted, strict=True):
        axes.plot([r["step"] for r in records], [r[name] for r in records], linewidth=1.2)
        axes.axhline(level, color="0.4", linestyle="--", linewidth=1, label=label)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _data_uri(buffer.getvalue())


def _png(strips: Tensor) -> str:
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    grid = make_grid(strips.flatten(0, 1), nrow=strips.shape[1], normalize=True,
                     value_range=(-1, 1), padding=1, pad_value=0.5)  # fmt: skip
    image = to_pil_image(grid)
    buffer = io.BytesIO()
    image.resize((image.width * 2, image.height * 2)).save(buffer, format="PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
