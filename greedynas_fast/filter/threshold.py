"""From log Phi to a decision: a path is weak if its log Phi is above a threshold.

The VPU loss does not change when Phi is scaled, so 0.5 on raw Phi means nothing; both rules are relative to U.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError

ThresholdRule: TypeAlias = Literal["quantile", "max"]


def find_threshold(log_weak: npt.NDArray[np.floating], q: float, rule: ThresholdRule = "quantile") -> float:
    """Largest log Phi of an accepted path.

    Args:
        log_weak: log Phi of unlabeled paths, [u], u >= 1.
        q: share of weak paths, 0 < q < 1; read by the rule `quantile`.
        rule: `quantile` accepts the round((1 - q) u) unlabeled paths (at least one) with the smallest log Phi, so that
            the accepted share of the space is 1 - q by construction; `max` is VPU's own, weak where
            Phi / max_U Phi > 0.5.

    Returns:
        The threshold; a path is accepted where log Phi <= threshold.

    Raises:
        InputError: if there is no path, or for an unknown rule.
    """
    values = np.asarray(log_weak, dtype=np.float32).ravel()
    if values.size == 0:
        raise InputError("log_weak: the threshold needs at least one unlabeled path, got none")
    if rule == "quantile":
        accepted = min(values.size, max(1, round((1.0 - q) * values.size)))
        return float(np.partition(values, accepted - 1)[accepted - 1])
    if rule == "max":
        return float(values.max()) + math.log(0.5)
    raise InputError(f"rule must be 'quantile' or 'max', got {rule!r}")
