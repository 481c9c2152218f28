"""Draws strips of shifted samples and writes them as one self-contained page."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from hdiscovery.evaluate.rca import Accuracy, Progress
from hdiscovery.gallery.curves import training_curves
from hdiscovery.train import Discovery


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionStrips:
    """What is shown of one direction.

    Attributes:
        k: Index of the direction, from 0.
        strips: ``[num_samples, num_shifts, C, H, W]`` in [-1, 1], floating point, C = 1 or 3.
            What lies outside is clamped; NaN is drawn as 0, mid-grey.
        accuracy: How often the reconstructor recognises the direction, in [0, 1], or None.
        shift_error: Mean abs(s_hat - s) of the direction, at least 0, or None.

    Raises:
        ValueError: If a field is none of these.
    """

    k: int
    strips: Tensor
    accuracy: float | None
    shift_error: float | None

    def __post_init__(self) -> None:
        shape = tuple(self.strips.shape)
        if len(shape) != 5 or 0 in shape or shape[2] not in (1, 3):
            raise ValueError(
                f"`strips` of direction {self.k} must be [num_samples, num_shifts, C, H, W] with "
                f"C = 1 or 3, got {list(shape)}. A single strip is `strips[None]`."
            )
        if not self.strips.is_floating_point():
            raise ValueError(
                f"`strips` of direction {self.k} must be floating point in [-1, 1], got "
                f"{self.strips.dtype}. Bytes become `strips / 127.5 - 1`."
            )
        if self.k < 0:
            raise ValueError(f"`k` counts directions from 0, got {self.k}. Pass its index.")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(
                f"`accuracy` of direction {self.k} must lie in [0, 1], got {self.accuracy}. "
                "Where it was not measured, pass None."
            )
        if self.shift_error is not None and not 0 <= self.shift_error < math.inf:
            raise ValueError(
                f"`shift_error` of direction {self.k} must be finite and at least 0, got "
                f"{self.shift_error}. Where it was not measured, pass None."
            )


def write_page(
    path: Path,
    *,
    title: str,
    shifts: Sequence[float],
    directions: Sequence[DirectionStrips],
    records: Sequence[Mapping[str, float]],
    facts: Mapping[str, str | float],
) -> Path:
    """Write one HTML file that shows directions, best recognised first, and needs no other.

    Every pixel is in the file, as PNG: about 4/3 of the images' bytes, before compression.

    Args:
        path: The file, ``.html``; its folder is made. It is written complete or not at all.
        title: Heading of the page.
        shifts: s of each column, increasing; 0, the original, is among them.
        directions: The strips, in any order, each with ``len(shifts)`` images per sample.
        records: The training's records, possibly none; see
            :func:`~hdiscovery.gallery.curves.training_curves`.
        facts: Names and values for the header. Where numbers ``K`` and ``S`` are among them, they
            give the levels of chance; else the number of ``directions`` and the largest shift do.

    Returns:
        ``path``.

    Raises:
        ValueError: If the arguments are out of range or do not fit each other.
    """
    _check(path, shifts, directions)
    K = _number(facts, "K", default=len(directions))
    S = _number(facts, "S", default=max(abs(s) for s in shifts))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hdiscovery", "gallery"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=_png, fact=_fact, shift=_shift)
    page = environment.get_template("page.html.jinja").render(
        title=title,
        facts=facts,
        shifts=shifts,
        origin=list(shifts).index(0),
        directions=sorted(directions, key=_best_first),
        chance=1 / K,
        curves=training_curves(records, K=int(K), S=S),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


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
                  accuracy: Accuracy, *, samples: int = 4, columns: int = 7,
                  progress: Progress = iter) -> Path:  # fmt: skip
    """Write ``index.html`` with a strip per direction, best recognised first.

    Args:
        discovery: The trained networks.
        folder: Where to write.
        records: The run's records, for the curves.
        accuracy: The run's measured accuracy.
        samples: Samples per direction.
        columns: Shifts per strip, odd, so that the middle one is the sample itself.
        progress: Wraps the loop over directions, as ``tqdm`` does.

    Returns:
        The page's path.

    Raises:
        ValueError: If ``columns`` is even or less than 3.
    """
    if columns % 2 == 0 or columns < 3:
        raise ValueError(
            f"`columns` must be odd, for s = 0 in the middle, and at least 3, got {columns}."
        )
    config = discovery.config
    half = columns // 2
    shifts = [config.S * (j - half) / half for j in range(columns)]
    last = records[-10:]
    facts = {
        "RCA": f"{accuracy.rca:.2f} (chance {1 / config.K:.2f})",
        "shift error": f"{accuracy.shift_error:.2f} (S/2 = {config.S / 2:g})",
        "L_G": f"{sum(r['L_G'] for r in last) / len(last):.3f} (ln 2 = 0.693)" if last else "—",
        "steps": len(records),
        **{name: asdict(config)[name] for name in ("K", "S", "M", "t_stop", "batch_size", "dm")},
    }
    return write_page(
        folder / "index.html",
        title=f"Directions of {config.dm}",
        shifts=shifts,
        directions=[
            DirectionStrips(
                k=k,
                strips=draw_strips(discovery, k, samples=samples, shifts=shifts),
                accuracy=accuracy.of_direction[k],
                shift_error=None,
            )
            for k in progress(range(config.K))
        ],
        records=records,
        facts=facts,
    )


def _check(path: Path, shifts: Sequence[float], directions: Sequence[DirectionStrips]) -> None:
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"`path` must name an .html file, got {path}. Try {path / 'index.html'}.")
    increasing = all(a < b for a, b in itertools.pairwise(shifts))
    if 0 not in shifts or not increasing or not all(math.isfinite(s) for s in shifts):
        raise ValueError(
            f"`shifts` must be finite, increase and contain 0, the original, got {list(shifts)}. "
            "With n >= 1, `[S * j / n for j in range(-n, n + 1)]` does."
        )
    if not directions:
        raise ValueError("`directions` is empty: there is nothing to show. Pass at least one.")
    for direction in directions:
        if direction.strips.shape[1] != len(shifts):
            raise ValueError(
                f"`strips` of direction {direction.k} hold {direction.strips.shape[1]} images per "
                f"sample, but `shifts` has {len(shifts)} values: {list(shifts)}. Draw the strips "
                "at these shifts, or pass the shifts that they were drawn at."
            )


def _number(facts: Mapping[str, str | float], name: str, *, default: float) -> float:
    value = facts.get(name, default)
    return value if isinstance(value, (int, float)) and 0 < value < math.inf else default


def _best_first(direction: DirectionStrips) -> tuple[bool, float, int]:
    return direction.accuracy is None, -(direction.accuracy or 0.0), direction.k


def _fact(value: str | float) -> str:
    """Return a value as one reads it: 20,000 and 0.6931."""
    if isinstance(value, str):
        return value
    return format(value, ",.0f" if float(value).is_integer() else ".4g").replace("-", "−")


def _shift(s: float) -> str:
    return format(s, "+.3g").replace("-", "−") if s else "0"


def _png(strip: Tensor) -> str:
    """Return one sample's images ``[num_shifts, C, H, W]``, side by side, as a data URI."""
    from torchvision.transforms.functional import to_pil_image

    images = strip.detach().cpu().float().nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0).clamp(-1, 1)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    file = io.BytesIO()
    to_pil_image(torch.cat(list(pixels), dim=-1)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
