"""What ``--direction`` asks for: fixed strengths, a strip along one direction, a grid of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hdiscovery.directions.about import About


@dataclass(frozen=True, slots=True)
class Asked:
    """A direction and its strength; without one it is an axis of the sheet."""

    k: int
    s: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Edits, arranged.

    Attributes:
        k: The n directions that take part.
        s: Strengths ``[rows, columns, n]``.
        fixed: Those of them with one strength, and that strength.
        axes: Those that are an axis, none to two: across, down.
        across: Strength of the first axis in each column; empty where there is no axis.
        down: Strength of the second axis in each row, largest first; empty where there is none.
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
    """Return what ``3:1.5``, ``3``, or a label in place of the number asks for.

    Raises:
        ValueError: If there is no such direction, or the strength is no finite number.
    """
    whole = text in about.labels or ":" not in text
    which, colon, strength = (text, "", "") if whole else text.rpartition(":")
    if which in about.labels and which:
        k = about.labels.index(which)
        if about.labels.count(which) > 1:
            raise ValueError(f"`--direction {text}`: several directions are called {which!r}.")
    else:
        try:
            k = int(which)
        except ValueError:
            known = ", ".join(sorted({label for label in about.labels if label}))
            raise ValueError(
                f"`--direction {text}`: {which!r} is neither a number, 0 … {about.K - 1}, nor a "
                f"label; labels are: {known or 'none'}. Write K or K:STRENGTH, such as 3:1.5."
            ) from None
    if not 0 <= k < about.K:
        raise ValueError(f"`--direction {text}`: there are the directions 0 … {about.K - 1}.")
    if not colon:
        return Asked(k, None)
    try:
        s = float(strength)
    except ValueError:
        s = float("nan")
    if not abs(s) < float("inf"):
        raise ValueError(
            f"`--direction {text}`: the strength {strength!r} is not a number. Write K:STRENGTH, "
            "such as 3:1.5, or K alone for all strengths from -S to S."
        )
    return Asked(k, s)


def arrange(asked: Sequence[Asked], *, span: float, columns: int) -> Layout:
    """Return the edits of a sheet.

    Args:
        asked: Directions, each once; at most two without a strength.
        span: An axis goes from -span to span.
        columns: Images along an axis, odd, so that the middle one is not shifted.

    Raises:
        ValueError: If these do not make a sheet.

    Example:
        >>> arrange([Asked(3, None), Asked(7, -2.0)], span=4, columns=3).s.tolist()
        [[[-4.0, -2.0], [0.0, -2.0], [4.0, -2.0]]]
    """
    k = tuple(one.k for one in asked)
    axes = [j for j, one in enumerate(asked) if one.s is None]
    if not asked or len(set(k)) < len(k) or len(axes) > 2:
        given = ", ".join(map(_word, asked)) or "none"
        raise ValueError(
            "`--direction` must be given at least once, every direction only once, and at most "
            f"two of them without a strength (a strip, a grid), got {given}."
        )
    if columns < 3 or columns % 2 == 0:
        raise ValueError(
            f"`--shifts` must be odd, for s = 0 in the middle, and at least 3, got {columns}."
        )
    if not 0 < span < float("inf"):
        raise ValueError(f"`--span` must be positive and finite, got {span}.")
    half = columns // 2
    along = tuple(span * (j - half) / half for j in range(columns))
    across = along if axes else ()
    down = along[::-1] if len(axes) == 2 else ()
    s = torch.tensor([one.s or 0.0 for one in asked]).repeat(len(down) or 1, len(across) or 1, 1)
    if across:
        s[:, :, axes[0]] = torch.tensor(across)
    if down:
        s[:, :, axes[1]] = torch.tensor(down)[:, None]
    return Layout(
        k=k,
        s=s,
        fixed=tuple((one.k, one.s) for one in asked if one.s is not None),
        axes=tuple(k[j] for j in axes),
        across=across,
        down=down,
        name="_".join(map(_word, asked)),
    )


def _word(one: Asked) -> str:
    return f"d{one.k}" if one.s is None else f"d{one.k}{one.s:+g}"
