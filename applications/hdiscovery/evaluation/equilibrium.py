"""Does a training stay in equilibrium, where the discriminator D outputs 1/2 as at the start?

    L_G = -log D(shifted)                                 ln 2   = 0.693 in equilibrium
    L_D = -log D(x_0) - log(1 - D(shifted))               2 ln 2 = 1.386 in equilibrium

According to the paper a good training stays there. `findings` reads the records of a training and
names what has gone wrong.
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
        name: ``"not-finite"``: a loss is NaN or infinite. ``"collapse"``: R recognises the
            directions while D recognises every shifted sample, so the shifts destroy the images
            (Fig. 3 of the paper). ``"D-overpowers"``: D recognises every shifted sample, and R
            does not recognise the directions (yet). ``"D-fooled"``: D takes shifted samples for
            unshifted ones and vice versa. ``"R-not-learning"``: the cross entropy is at ln K,
            the value of guessing.
        step: The step since which the condition has held until the end; for ``"not-finite"``,
            the step of the first such loss.
        text: The values seen, the values expected, and what may help.
    """

    name: Name
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """The losses at the end of a training, compared with equilibrium.

    Attributes:
        steps: Number of records.
        window: Number of last records that the means are over.
        L_G: Mean of L_G; ln 2 in equilibrium.
        L_D: Mean of L_D; 2 ln 2 in equilibrium.
        L_G_over_ln2: L_G / ln 2; 1 in equilibrium.
        L_D_over_2ln2: L_D / (2 ln 2); 1 in equilibrium.
        largest_L_G: The largest mean of L_G over any window of the training.
        findings: What is wrong; empty if nothing is.
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
    """Return the final losses of a training, and what is wrong with it.

    Args:
        records: One mapping per step, with ``step``, ``L_G``, ``L_D``, ``cross_entropy`` and
            ``accuracy``.
        K: Number of directions.
        window: Records that each mean is over, at most as many as there are.

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

        D recognises shifted samples    L_G > 2 ln 2 and L_D < ln 2     (D(shifted) < 1/4)
        D takes them for unshifted      L_G < ln 2 / 2 and L_D > 3 ln 2
        R recognises the directions     accuracy > 1/K + (1 - 1/K) / 2
        R guesses                       cross entropy > 0.95 ln K, after 200 steps or more
    """
    for record in records:
        bad = [name for name, value in record.items() if not _finite(value)]
        if bad:
            text = f"{bad[0]} is {record[bad[0]]}. Go back to an earlier checkpoint and "
            return [Finding("not-finite", record["step"], f"{text}lower the learning rate.")]
    window = max(1, min(window, len(records)))
    L_G, L_D, entropy, accuracy = (
        _running_mean([record[name] for record in records], window)
        for name in ("L_G", "L_D", "cross_entropy", "accuracy")
    )
    steps = [record["step"] for record in records[window - 1 :]]
    found = _discriminator(steps, L_G, L_D, accuracy[-1], K=K)
    guessing = [value > 0.95 * math.log(K) for value in entropy]
    if guessing[-1] and len(records) >= 200:
        found.append(Finding("R-not-learning", steps[_since(guessing)], (
            f"the cross entropy is {entropy[-1]:.2f}, and ln K is {math.log(K):.2f}: R guesses. "
            "Random initial heads (head_std), more updates of R (r_updates), a larger lambda_1 or "
            "more steps may help.")))  # fmt: skip
    return found


def _discriminator(
    steps: Sequence[int], L_G: Sequence[float], L_D: Sequence[float], accuracy: float, *, K: int
) -> list[Finding]:
    """Return what is wrong between D and the shifts; the losses are running means."""
    losses = list(zip(L_G, L_D, strict=True))
    seen_by_D = [g > 2 * LN_2 and d < LN_2 for g, d in losses]
    fooled = [g < LN_2 / 2 and d > 3 * LN_2 for g, d in losses]
    values = f"L_G is {L_G[-1]:.2f} (ln 2 = 0.69) and L_D is {L_D[-1]:.2f} (2 ln 2 = 1.39)"
    if seen_by_D[-1] and accuracy > 1 / K + (1 - 1 / K) / 2:
        return [Finding("collapse", steps[_since(seen_by_D)], (
            f"{values}, while R recognises {accuracy:.0%} of the directions: the shifts destroy "
            "the images, as in Fig. 3 of the paper. Start again with a smaller S, a larger t_stop, "
            "or a smaller lambda_1 and lambda_2."))]  # fmt: skip
    if seen_by_D[-1]:
        return [Finding("D-overpowers", steps[_since(seen_by_D)], (
            f"{values}: D recognises every shifted sample, and R only {accuracy:.0%} of the "
            "directions. A lower learning rate gives the shift block time."))]  # fmt: skip
    if fooled[-1]:
        return [Finding("D-fooled", steps[_since(fooled)], (
            f"{values}: D takes shifted samples for unshifted ones, so it does not restrain the "
            "shifts. A lower learning rate may help."))]  # fmt: skip
    return []


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the means of all ``window`` consecutive values, ``len(values) - window + 1`` means."""
    return [math.fsum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def _since(holds: Sequence[bool]) -> int:
    """Return the index since which the condition holds until the end; the last entry is true."""
    i = len(holds) - 1
    while i and holds[i - 1]:
        i -= 1
    return i


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
