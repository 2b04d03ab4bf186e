"""Confidence of multi-path sampling, Theorem 1 (Sec. 3.1) and its twin for weak paths (Sec. 3.2)."""

from __future__ import annotations

import math
from fractions import Fraction

from greedynas_fast.errors import InputError


def confidence(m: int, k: int, p: float) -> float:
    """Probability that at least `k` of `m` uniformly sampled paths are good, Eq. (1).

    The sum is taken in exact integers and rounded once. Check values: (10, 5, 0.6) gives 0.83376, (10, 5, 0.1) gives
    0.00163; with the share of weak paths, (10, 5, 0.9) gives 0.99985.

    Args:
        m: number of sampled paths, at least 1.
        k: number of them that should be good, 0 <= k <= m.
        p: share of good paths in the space, 0..1.

    Returns:
        P = sum over j = k..m of C(m, j) p^j (1-p)^(m-j).

    Raises:
        InputError: for a value out of range.
    """
    if m < 1:
        raise InputError(f"m must be at least 1, got {m}")
    if not 0 <= k <= m:
        raise InputError(f"k must be between 0 and m = {m}, got {k}")
    if not 0.0 <= p <= 1.0:
        raise InputError(f"p must be between 0 and 1, got {p}")
    good, whole = float(p).as_integer_ratio()
    weak = whole - good
    total = sum(math.comb(m, j) * good**j * weak ** (m - j) for j in range(k, m + 1))
    return float(Fraction(total, whole**m))


def weak_confidence(m: int, k: int, q: float) -> float:
    """Probability that at least `k` of `m` sampled paths are weak, the Q of Sec. 3.2.

    Args:
        m: number of sampled paths, at least 1.
        k: number of them that should be weak, 0 <= k <= m.
        q: share of weak paths in the space, 0..1.

    Returns:
        Q = sum over j = k..m of C(m, j) q^j (1-q)^(m-j).

    Raises:
        InputError: for a value out of range.
    """
    return confidence(m, k, q)
