"""The layout of a sheet from ``--direction``: fixed strengths, a strip along one, a grid of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hdiscovery.directions.about import About


@dataclass(frozen=True, slots=True)
class Asked:
    """A direction and its strength. A direction without a strength is an axis of the sheet."""

    k: int
    s: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Edits in rows and columns.

    Attributes:
        k: The n directions of the edits.
        s: Strengths ``[rows, columns, n]``.
        fixed: Directions with one strength for the whole sheet, and that strength.
        axes: Directions whose strength varies: up to two, the first across, the second down.
        across: Strength of the first axis in each column; empty without an axis.
        down: Strength of the second axis in each row, largest first; empty without a second axis.
        name: Short name for files, such as ``d3_d7+1.5``.
    """

    k: tuple[int, ...]
    s: Tensor
    fixed: tuple[tuple[int, float], ...]
    axes: tuple[int, ...]
    across: tuple[float, ...]
    down: tuple[float, ...]
    name: str


def parse_direction(text: str, about: About) -> Asked:
    """Return the direction and strength of ``3:1.5``, ``3``, or a label in place of the number.

    Raises:
        ValueError: If the direction does not exist, or the strength is not a finite number.
    """
    whole = text in about.labels or ":" not in text
    which, colon, strength = (text, "", "") if whole else text.rpartition(":")
    try:
        return Asked(_number(which, about), _strength(strength) if colon else None)
    except ValueError as error:
        raise ValueError(f"`--direction {text}`: {error}") from None


def _number(which: str, about: About) -> int:
    if which in about.labels and which:
        if about.labels.count(which) > 1:
            raise ValueError(f"several directions are called {which!r}. Name one by its number.")
        return about.labels.index(which)
    try:
        k = int(which)
    except ValueError:
        known = ", ".join(sorted({label for label in about.labels if label}))
        raise ValueError(
            f"{which!r} is neither a number, 0 … {about.K - 1}, nor a label; labels are: "
            f"{known or 'none'}. Write K or K:STRENGTH, such as 3:1.5."
        ) from None
    if not 0 <= k < about.K:
        raise ValueError(f"direction {k} does not exist. The directions are 0 … {about.K - 1}.")
    return k


def _strength(text: str) -> float:
    try:
        s = float(text)
    except ValueError:
        s = math.nan
    if not math.isfinite(s):
        raise ValueError(
            f"the strength {text!r} is not a number. Write K:STRENGTH, such as 3:1.5, or K alone "
            "for all strengths from -S to S."
        )
    return s


def arrange(asked: Sequence[Asked], *, span: float, columns: int) -> Layout:
    """Return the edits of a sheet.

    Args:
        asked: Directions, each once; at most two of them without a strength.
        span: An axis goes from -span to span.
        columns: Images along an axis, an odd number, so that the middle image is not shifted.

    Raises:
        ValueError: If the arguments do not make a sheet.

    Example:
        >>> arrange([Asked(3, None), Asked(7, -2.0)], span=4, columns=3).s.tolist()
        [[[-4.0, -2.0], [0.0, -2.0], [4.0, -2.0]]]
    """
    k = tuple(one.k for one in asked)
    axes = [j for j, one in enumerate(asked) if one.s is None]
    _refuse(asked, axes, span, columns)
    half = columns // 2
    along = tuple(span * (j - half) / half for j in range(columns))
    across = along if axes else ()
    down = along[::-1] if len(axes) == 2 else ()
    s = torch.tensor([one.s or 0.0 for one in asked]).repeat(len(down) or 1, len(across) or 1, 1)
    if across:
        s[:, :, axes[0]] = torch.tensor(across)
    if down:
        s[:, :, axes[1]] = torch.tensor(down)[:, None]
    fixed = tuple((one.k, one.s) for one in asked if one.s is not None)
    name = "_".join(map(_word, asked))
    return Layout(k, s, fixed, tuple(k[j] for j in axes), across, down, name)


def _refuse(asked: Sequence[Asked], axes: Sequence[int], span: float, columns: int) -> None:
    if not asked or len({one.k for one in asked}) < len(asked) or len(axes) > 2:
        given = ", ".join(map(_word, asked)) or "none"
        raise ValueError(
            "`--direction` must be given at least once, every direction only once, and at most "
            f"two of them without a strength (a strip, a grid), got {given}."
        )
    if columns < 3 or columns % 2 == 0:
        raise ValueError(
            f"`--shifts` must be odd, for s = 0 in the middle, and at least 3, got {columns}."
        )
    if not 0 < span < math.inf:
        raise ValueError(f"`--span` must be positive and finite, got {span}.")


def _word(one: Asked) -> str:
    return f"d{one.k}" if one.s is None else f"d{one.k}{one.s:+g}"
