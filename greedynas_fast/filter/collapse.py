"""Notices a filter that has learned nothing, so that it is reported and never used to reject.

Two signs: log Phi hardly varies over U, or held-out weak paths do not score above held-out good ones. In the PU losses
good scored paths are not trained on at all, so every one of them can judge for free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import auroc


@dataclass(frozen=True)
class CollapseCheck:
    """What was seen.

    Attributes:
        collapsed: whether the filter must not reject.
        reason: a plain sentence; empty if not collapsed.
        spread: standard deviation of log Phi over U; 0 if some value is not finite.
        auroc: on held-out labels; None if a class had no held-out path.
        auroc_bound: what `auroc` had to exceed; None with it.
    """

    collapsed: bool
    reason: str
    spread: float
    auroc: float | None
    auroc_bound: float | None


def check_collapse(
    log_weak_unlabeled: npt.NDArray[np.floating],
    log_weak_held_out: npt.NDArray[np.floating],
    held_out_weak: npt.NDArray[np.bool_],
    *,
    min_spread: float,
    auroc_margin: float,
) -> CollapseCheck:
    """Judge a trained filter.

    Args:
        log_weak_unlabeled: log Phi of U, [u].
        log_weak_held_out: log Phi of scored paths that were not trained on, [h]; may be empty.
        held_out_weak: their labels, [h].
        min_spread: smallest standard deviation of log Phi over U.
        auroc_margin: AUROC must exceed 0.5 by this much, and by one standard error of an uninformed filter, which is
            sqrt((w + g + 1) / (12 w g)) for w weak and g good held-out paths.

    Returns:
        The verdict and its numbers.
    """
    unlabeled = np.asarray(log_weak_unlabeled, dtype=np.float64)
    finite = bool(np.isfinite(unlabeled).all())
    spread = float(unlabeled.std()) if finite else 0.0
    num_weak = int(np.count_nonzero(held_out_weak))
    num_good = int(held_out_weak.size) - num_weak
    area: float | None = None
    bound: float | None = None
    if num_weak and num_good and finite:
        area = auroc(log_weak_held_out, held_out_weak)
        bound = 0.5 + max(auroc_margin, math.sqrt((num_weak + num_good + 1) / (12.0 * num_weak * num_good)))
    reason = ""
    if not finite:
        reason = "the filter's output is not finite"
    elif spread < min_spread:
        reason = f"log Phi hardly varies over the unlabeled paths (spread {spread:.3g}, at least {min_spread:.3g})"
    elif area is not None and bound is not None and area <= bound:
        reason = f"the filter does not separate held-out paths (AUROC {area:.3f}, above {bound:.3f} wanted)"
    return CollapseCheck(bool(reason), reason, spread, area, bound)
