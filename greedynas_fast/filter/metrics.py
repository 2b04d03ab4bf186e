"""Precision, recall and the area under the ROC curve for a binary decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError


@dataclass(frozen=True)
class PrecisionRecall:
    """Two shares in 0..1; nan where a denominator is zero (nothing predicted, or nothing to find)."""

    precision: float
    recall: float


def precision_recall(predicted: npt.ArrayLike, actual: npt.ArrayLike) -> PrecisionRecall:
    """Precision and recall of the positive class.

    Args:
        predicted: bool [n], the decision.
        actual: bool [n], the truth.

    Returns:
        Precision and recall as shares.

    Raises:
        InputError: if the shapes differ.
    """
    said = np.asarray(predicted, dtype=bool)
    true = np.asarray(actual, dtype=bool)
    if said.shape != true.shape or said.ndim != 1:
        raise InputError(f"predicted and actual must be vectors of one length, got {said.shape} and {true.shape}")
    hits = int(np.count_nonzero(said & true))
    num_said, num_true = int(said.sum()), int(true.sum())
    return PrecisionRecall(hits / num_said if num_said else float("nan"), hits / num_true if num_true else float("nan"))


def average_ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Rank of each value, 0 for the smallest; equal values share the mean of their ranks.

    Args:
        values: numbers [n], infinities included, no NaN.

    Returns:
        float64 [n].
    """
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: npt.NDArray[np.float64] = (last - 1 - (counts - 1) / 2.0)[inverse]
    return result


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, ties counted half (Mann-Whitney).

    Args:
        scores: float [n], higher means more positive.
        positive: bool [n].

    Returns:
        A value in 0..1; nan if one of the classes is empty.

    Raises:
        InputError: if the shapes differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(positive, dtype=bool)
    if values.shape != labels.shape or values.ndim != 1:
        raise InputError(f"scores and positive must be vectors of one length, got {values.shape} and {labels.shape}")
    num_positive = int(labels.sum())
    num_negative = labels.size - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    rank_sum = float(average_ranks(values)[labels].sum())
    return (rank_sum - num_positive * (num_positive - 1) / 2.0) / (num_positive * num_negative)
