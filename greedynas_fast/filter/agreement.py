"""How steady the filter is: the share of paths that two filters decide alike, Eq. (7), and Cohen's kappa."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from greedynas_fast.errors import InputError

from .network import PathsLike
from .trained import TrainedFilter


@dataclass(frozen=True)
class Agreement:
    """Agreement of two filters.

    Attributes:
        u: share of paths with equal decisions, Eq. (7).
        kappa: (u - e) / (1 - e), where e is what two independent filters with these shares of weak paths would reach:
            at q = 0.95 they already have u = 0.905, but kappa 0.
    """

    u: float
    kappa: float


def agreement(a: TrainedFilter, b: TrainedFilter, paths: PathsLike) -> Agreement:
    """Compare the decisions of two filters on the same paths.

    Args:
        a: a filter.
        b: another one.
        paths: uint8 [M, L], M >= 1; the paper takes M = 10^4 uniform paths.

    Returns:
        Both measures. A collapsed filter agrees with nothing (both 0), so that training is never stopped because of it;
        kappa is 0 also where both filters are constant and alike, since that is what chance gives.

    Raises:
        InputError: if there is no path.
    """
    if len(paths) == 0:
        raise InputError("paths: at least one path is needed to compare two filters, got none")
    if a.collapsed or b.collapsed:
        return Agreement(0.0, 0.0)
    first, second = a.is_weak(paths), b.is_weak(paths)
    u = float(np.mean(first == second))
    share_a, share_b = float(first.mean()), float(second.mean())
    expected = share_a * share_b + (1.0 - share_a) * (1.0 - share_b)
    return Agreement(u, 0.0 if expected == 1.0 else (u - expected) / (1.0 - expected))
