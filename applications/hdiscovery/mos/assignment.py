"""Who marks which direction."""

from __future__ import annotations

import random

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # without vowels: a code that is a word would say something


def assign(K: int, raters: int, *, marks: int = 2, seed: int) -> list[list[int]]:
    """Share directions out: each goes to ``marks`` raters, and all raters have as many, within 1.

    Each direction goes to those who have the fewest so far, ties broken by lot: so who shares a
    direction with whom varies, and disagreement does not depend on one pair of raters.

    Args:
        K: Number of directions.
        raters: How many people.
        marks: Raters of each direction; the paper's 2.
        seed: Of the lots.

    Returns:
        For each rater the directions, in an order of their own.

    Raises:
        ValueError: If there are fewer raters than ``marks``, or more than there is work for.

    Example:
        >>> [len(directions) for directions in assign(32, 16, seed=0)]
        [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    """
    if not 1 <= marks <= raters:
        raise ValueError(
            f"`raters` must be at least {marks}, as many as mark each direction, got {raters}."
        )
    if raters > marks * K:
        raise ValueError(
            f"`raters` = {raters} is more than the {marks * K} marks of {K} directions: some would "
            "have nothing to do. Ask fewer."
        )
    lots = random.Random(seed)
    work: list[list[int]] = [[] for _ in range(raters)]
    for k in lots.sample(range(K), K):
        for own in sorted(work, key=lambda own: (len(own), lots.random()))[:marks]:
            own.append(k)
    for own in work:
        lots.shuffle(own)
    return work


def codes(K: int, *, seed: int) -> list[str]:
    """Return a code for each direction that says nothing about it.

    Raises:
        ValueError: If there are more directions than codes.
    """
    if len(_LETTERS) ** 4 < K:
        raise ValueError(f"`K` can be {len(_LETTERS) ** 4} at most, got {K}.")
    lots = random.Random(f"codes {seed}")
    found: dict[str, None] = {}
    while len(found) < K:
        found["".join(lots.choices(_LETTERS, k=4))] = None
    return list(found)
