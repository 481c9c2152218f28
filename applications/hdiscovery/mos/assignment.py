"""The assignment of directions to raters, and the codes that hide which direction is which."""

from __future__ import annotations

import random

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so that no code is a word, which could bias raters


def assign(K: int, raters: int, *, marks: int = 2, seed: int) -> list[list[int]]:
    """Assign each direction to ``marks`` raters; the raters' numbers of directions differ by 1.

    Each direction goes to the raters with the fewest directions so far; ties are broken at random.
    So the pairs of raters vary, and no disagreement depends on one pair.

    Args:
        K: Number of directions.
        raters: Number of raters.
        marks: Raters of each direction; the paper takes 2.
        seed: Seed of the random choices.

    Returns:
        The directions of each rater, each in a random order.

    Raises:
        ValueError: If there are fewer raters than ``marks``, or more raters than marks to give.

    Example:
        >>> [len(directions) for directions in assign(32, 16, seed=0)]
        [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    """
    _refuse(K, raters, marks)
    lots = random.Random(seed)
    work: list[list[int]] = [[] for _ in range(raters)]
    for k in lots.sample(range(K), K):
        for own in sorted(work, key=lambda own: (len(own), lots.random()))[:marks]:
            own.append(k)
    for own in work:
        lots.shuffle(own)
    return work


def _refuse(K: int, raters: int, marks: int) -> None:
    if not 1 <= marks <= raters:
        raise ValueError(
            f"`raters` must be at least {marks}, the number that mark each direction, got {raters}."
        )
    if raters > marks * K:
        raise ValueError(
            f"`raters` = {raters} is too many: {K} directions have {marks * K} marks, so some "
            "raters would have nothing to do. Ask fewer."
        )


def codes(K: int, *, seed: int) -> list[str]:
    """Return a random code for each direction.

    Raises:
        ValueError: If there are more directions than codes.
    """
    if len(_LETTERS) ** 4 < K:
        raise ValueError(f"`K` must be at most {len(_LETTERS) ** 4}, got {K}.")
    lots = random.Random(f"codes {seed}")
    found: dict[str, None] = {}
    while len(found) < K:
        found["".join(lots.choices(_LETTERS, k=4))] = None
    return list(found)
