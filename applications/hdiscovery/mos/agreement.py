r"""How far raters agree.

Krippendorff's alpha for nominal values, from the coincidences of values within units:

    o_cd  = sum over units u of (ordered pairs of values (c, d) in u) / (m_u - 1)
    n_c   = sum_d o_cd,   n = sum_c n_c
    alpha = 1 - D_o / D_e,   D_o = sum_{c != d} o_cd / n,   D_e = sum_{c != d} n_c n_d / (n (n - 1))

m_u is the number of values of unit u. Units of one value carry no information and are left out.
Alpha is 1 if all raters agree, and 0 if they agree as often as by chance. Unlike Cohen's kappa,
alpha does not need the same two raters for every unit.

Source: Krippendorff (2011), Computing Krippendorff's alpha-reliability.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import permutations

Units = Iterable[Sequence[Hashable]]


def raw_agreement(units: Units) -> float | None:
    """Return the share of pairs with equal values, among all pairs of values of the same unit.

    Args:
        units: The values of each unit, from any raters.

    Returns:
        A share in [0, 1]; None if no unit has two values.

    Example:
        >>> raw_agreement([(1, 1), (0, 1), (1,)])
        0.5
    """
    pairs = [a == b for unit in units for a, b in permutations(unit, 2)]
    return sum(pairs) / len(pairs) if pairs else None


def krippendorff_alpha(units: Units) -> float | None:
    """Return Krippendorff's alpha for nominal values, by the module's formula.

    Args:
        units: The values of each unit, from any raters.

    Returns:
        At most 1; None if all comparable values are equal, because D_e is then 0.

    Example:
        >>> krippendorff_alpha([(0, 0), (1, 1), (0, 1), (1, 1)])
        0.5333333333333333
    """
    o: Counter[tuple[Hashable, Hashable]] = Counter()
    for unit in units:
        for pair in permutations(unit, 2):
            o[pair] += 1 / (len(unit) - 1)  # pyright: ignore[reportArgumentType]
    n_c: Counter[Hashable] = Counter()
    for (c, _), count in o.items():
        n_c[c] += count
    n = sum(n_c.values())
    if len(n_c) < 2:
        return None
    D_o = sum(count for (c, d), count in o.items() if c != d) / n
    D_e = sum(n_c[c] * n_c[d] for c, d in permutations(n_c, 2)) / (n * (n - 1))
    return 1 - D_o / D_e
