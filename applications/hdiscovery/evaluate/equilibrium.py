"""Is the training where the paper says it stays: in the equilibrium that it began in?

    L_G = -log D(shifted)                                 ln 2   = 0.693 in equilibrium (D = 1/2)
    L_D = -log D(x_0) - log(1 - D(shifted))               2 ln 2 = 1.386

`findings` names what has gone wrong, from the records of a training alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LN_2 = math.log(2)

Name = Literal["not-finite", "collapse", "D-overpowers", "D-fooled", "R-not-learning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a training.

    Attributes:
        name: ``"not-finite"``: a loss is NaN or infinite. ``"collapse"``: R knows the directions
            while D knows every shifted sample: the shifts destroy the images, Fig. 3 of the paper.
            ``"D-overpowers"``: the same of D, while R does not know the directions (yet).
            ``"D-fooled"``: D takes shifted samples for the real ones, and the real for shifted.
            ``"R-not-learning"``: the cross entropy is where guessing is, ln K.
        step: The first step from which on it held to the end (of a loss that is not finite: where).
        text: What was seen, against what, and what may help.
    """

    name: Name
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """The losses at the end of a training, against those in equilibrium.

    Attributes:
        steps: Records in all.
        window: Records that the means are over, the last ones.
        L_G: Mean of L_G; in equilibrium ln 2.
        L_D: Mean of L_D; in equilibrium 2 ln 2.
        L_G_over_ln2: Their ratio, 1 in equilibrium.
        L_D_over_2ln2: Likewise.
        largest_L_G: The largest mean of L_G over any window of the training.
        findings: What is wrong; empty where nothing is.
    """

    steps: int
    window: int
    L_G: float
    L_D: float
    L_G_over_ln2: float
    L_D_over_2ln2: float
    largest_L_G: float
    findings: list[Finding]


def measure_equilibrium(
    records: Sequence[Mapping[str, Any]], *, K: int, window: int = 50
) -> Equilibrium:
    """Return where the losses of a training are, and what is wrong with it.

    Args:
        records: With ``L_G``, ``L_D``, ``cross_entropy`` and ``accuracy``, a mapping a step.
        K: Number of directions.
        window: Records that means are over; fewer where there are fewer.

    Raises:
        ValueError: If there are no records.
    """
    if not records:
        raise ValueError("`records` is empty: the run has not been trained yet.")
    window = max(1, min(window, len(records)))
    L_G, L_D = (_running_mean([r[name] for r in records], window) for name in ("L_G", "L_D"))
    return Equilibrium(
        steps=len(records),
        window=window,
        L_G=L_G[-1],
        L_D=L_D[-1],
        L_G_over_ln2=L_G[-1] / LN_2,
        L_D_over_2ln2=L_D[-1] / (2 * LN_2),
        largest_L_G=max(L_G),
        findings=findings(records, K=K, window=window),
    )


def findings(records: Sequence[Mapping[str, Any]], *, K: int, window: int = 50) -> list[Finding]:
    """Return what is wrong with a training at its end; see `Finding`.

    The rules, on means over ``window`` records:

        D knows shifted samples      L_G > 2 ln 2 and L_D < ln 2     (D(shifted) < 1/4)
        D takes them for real        L_G < ln 2 / 2 and L_D > 3 ln 2
        R knows the directions       accuracy > 1/K + (1 - 1/K) / 2
        R guesses                    cross entropy > 0.95 ln K, after 200 steps or more
    """
    for record in records:
        bad = [name for name, value in record.items() if not _finite(value)]
        if bad:
            text = f"{bad[0]} is {record[bad[0]]}: go back to a checkpoint before, with a lower "
            return [Finding("not-finite", record["step"], f"{text}learning rate.")]
    window = max(1, min(window, len(records)))
    G, D, CE, a = (
        _running_mean([record[name] for record in records], window)
        for name in ("L_G", "L_D", "cross_entropy", "accuracy")
    )
    steps = [record["step"] for record in records[window - 1 :]]
    known = 1 / K + (1 - 1 / K) / 2
    found: list[Finding] = []
    seen_by_D = [g > 2 * LN_2 and d < LN_2 for g, d in zip(G, D, strict=True)]
    if seen_by_D[-1]:
        where = steps[_since(seen_by_D)]
        values = f"L_G is {G[-1]:.2f} (ln 2 = 0.69) and L_D {D[-1]:.2f} (2 ln 2 = 1.39)"
        if a[-1] > known:
            found.append(Finding("collapse", where, (
                f"{values}, while R knows {a[-1]:.0%} of the directions: the shifts leave the "
                "images behind, as in Fig. 3 of the paper. Start anew with a smaller S, a larger "
                "t_stop or smaller lambda_1 and lambda_2.")))  # fmt: skip
        else:
            found.append(Finding("D-overpowers", where, (
                f"{values}: D knows every shifted sample, and R only {a[-1]:.0%} of the "
                "directions. A lower learning rate gives the shift block time.")))  # fmt: skip
    fooled = [g < LN_2 / 2 and d > 3 * LN_2 for g, d in zip(G, D, strict=True)]
    if fooled[-1]:
        found.append(Finding("D-fooled", steps[_since(fooled)], (
            f"L_G is {G[-1]:.2f} (ln 2 = 0.69) and L_D {D[-1]:.2f} (2 ln 2 = 1.39): D takes "
            "shifted samples for unshifted ones, and holds nothing back. A lower learning rate may "
            "help.")))  # fmt: skip
    guessing = [ce > 0.95 * math.log(K) for ce in CE]
    if guessing[-1] and len(records) >= 200:
        found.append(Finding("R-not-learning", steps[_since(guessing)], (
            f"the cross entropy is {CE[-1]:.2f}, and ln K = {math.log(K):.2f}: R guesses. Heads "
            "that are drawn (head_std), more updates of R (r_updates), a larger lambda_1 or more "
            "steps may help.")))  # fmt: skip
    return found


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each ``window`` values in a row, ``len(values) - window + 1`` of them."""
    return [math.fsum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def _since(holds: Sequence[bool]) -> int:
    """Return the first index from which on all are true; the last one is."""
    i = len(holds) - 1
    while i and holds[i - 1]:
        i -= 1
    return i


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
