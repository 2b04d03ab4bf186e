"""Thresholds, collapse, agreement, metrics and Theorem 1."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.errors import InputError
from greedynas_fast.filter import (
    FilterReport,
    PathFilter,
    TrainedFilter,
    agreement,
    auroc,
    average_ranks,
    check_collapse,
    confidence,
    find_threshold,
    precision_recall,
    weak_confidence,
)

REPORT = FilterReport(
    loss="vpu",
    q=0.5,
    steps=1,
    num_scored=2,
    num_weak=1,
    num_good=0,
    num_unlabeled=4,
    held_out_weak=0,
    held_out_good=1,
    first_loss=0.0,
    final_loss=0.0,
    threshold=-1.0,
    accepted_share=0.5,
    spread=1.0,
    auroc=None,
    auroc_bound=None,
    collapsed=False,
    reason="",
)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95, 0.99])
def test_quantile_rule_accepts_the_share_one_minus_q(q: float) -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    threshold = find_threshold(values, q)
    assert np.count_nonzero(values <= np.float32(threshold)) == round((1 - q) * 1000)


def test_quantile_rule_accepts_at_least_one_and_max_rule_is_relative() -> None:
    values = np.log(np.array([0.1, 0.3, 0.4, 0.7], np.float32))
    assert find_threshold(values, 0.999) == pytest.approx(math.log(0.1), rel=1e-6)
    accepted = values <= np.float32(find_threshold(values, 0.9, "max"))
    assert accepted.tolist() == [True, True, False, False]
    shifted = values - 3 <= np.float32(find_threshold(values - 3, 0.9, "max"))
    assert shifted.tolist() == accepted.tolist()


def test_threshold_bad_input() -> None:
    with pytest.raises(InputError, match="at least one unlabeled path"):
        find_threshold(np.zeros(0), 0.5)
    with pytest.raises(InputError, match="rule"):
        find_threshold(np.zeros(3), 0.5, "median")  # type: ignore[arg-type]


def judge(unlabeled: np.ndarray, held: np.ndarray, labels: np.ndarray) -> tuple[bool, str]:
    verdict = check_collapse(unlabeled, held, labels, min_spread=0.01, auroc_margin=0.05)
    return verdict.collapsed, verdict.reason


def test_collapse() -> None:
    rng = np.random.default_rng(0)
    unlabeled = rng.normal(size=500)
    labels = np.arange(100) < 60
    separated = np.where(labels, 1.0, 0.0) + 0.1 * rng.normal(size=100)
    assert judge(unlabeled, separated, labels) == (False, "")
    assert judge(np.full(500, -0.1), separated, labels)[1].startswith("log Phi hardly varies")
    assert "does not separate" in judge(unlabeled, np.zeros(100), labels)[1]
    assert "does not separate" in judge(unlabeled, -separated, labels)[1]
    assert "not finite" in judge(np.array([0.0, np.nan]), separated, labels)[1]
    # Nothing can be said with one class only, and little with two paths.
    assert judge(unlabeled, separated[:60], labels[:60]) == (False, "")
    verdict = check_collapse(unlabeled, np.array([1.0, 0.0]), np.array([True, False]), min_spread=0, auroc_margin=0)
    assert verdict.auroc_bound == pytest.approx(0.5 + math.sqrt(3 / 12))


def make(seed: int, threshold: float = -0.7, collapsed: bool = False) -> TrainedFilter:
    net = PathFilter([3] * 4, hidden=6, seed=seed)
    return TrainedFilter(net, threshold, replace(REPORT, threshold=threshold, collapsed=collapsed))


def paths(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 3, (count, 4)).astype(np.uint8)


def test_is_weak_follows_the_threshold_and_a_collapsed_filter_rejects_nothing() -> None:
    probe = paths(50)
    values = make(0).log_prob_weak(probe)
    middle = float(np.median(values))
    trained = make(0, middle)
    assert trained.is_weak(probe).tolist() == (values > np.float32(middle)).tolist()
    assert 0 < trained.is_weak(probe).sum() < 50
    assert not make(0, middle, collapsed=True).is_weak(probe).any()
    with pytest.raises(InputError, match="operation 3"):
        make(0, collapsed=True).is_weak(np.full((1, 4), 3))


def test_agreement_by_hand() -> None:
    class Fixed(TrainedFilter):
        def __init__(self, decisions: str) -> None:
            super().__init__(PathFilter([2], hidden=2), 0.0, REPORT)
            self.decisions = np.array([c == "w" for c in decisions])

        def is_weak(self, paths: object) -> np.ndarray:
            return self.decisions

    probe = np.zeros((10, 1), np.uint8)
    result = agreement(Fixed("wwwwwwwwgg"), Fixed("wwwwwwgwgw"), probe)
    # a: 8 weak, b: 8 weak, 8 alike; e = .8 * .8 + .2 * .2 = .68
    assert result.u == pytest.approx(0.8)
    assert result.kappa == pytest.approx((0.8 - 0.68) / (1 - 0.68))
    assert agreement(Fixed("w" * 10), Fixed("w" * 10), probe).kappa == 0.0
    assert agreement(Fixed("wg" * 5), Fixed("gw" * 5), probe).kappa == pytest.approx(-1.0)
    with pytest.raises(InputError, match="at least one path"):
        agreement(Fixed(""), Fixed(""), probe[:0])


def test_a_filter_agrees_with_itself_but_a_collapsed_one_with_nothing() -> None:
    probe = paths(60)
    trained = make(1, float(np.median(make(1).log_prob_weak(probe))))
    assert agreement(trained, trained, probe) == agreement(trained, trained, probe)
    assert agreement(trained, trained, probe).u == 1.0
    assert agreement(trained, trained, probe).kappa == pytest.approx(1.0)
    dead = make(1, collapsed=True)
    assert agreement(dead, dead, probe).u == 0.0


def test_precision_and_recall_by_hand() -> None:
    result = precision_recall([True, True, True, False], [True, False, True, True])
    assert (result.precision, result.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert math.isnan(precision_recall([False, False], [True, False]).precision)
    assert math.isnan(precision_recall([True, False], [False, False]).recall)
    with pytest.raises(InputError, match="one length"):
        precision_recall([True], [True, False])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auroc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    positives = [score for score, label in pairs if label]
    negatives = [score for score, label in pairs if not label]
    area = auroc([score for score, _ in pairs], [label for _, label in pairs])
    if not positives or not negatives:
        assert math.isnan(area)
        return
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    assert area == pytest.approx(wins / (len(positives) * len(negatives)))


def test_average_ranks_share_ties_and_know_infinity() -> None:
    assert average_ranks([3.0, -math.inf, 3.0, math.inf]).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_theorem_1_check_values() -> None:
    assert confidence(10, 5, 0.6) == pytest.approx(0.83376, abs=5e-6)
    assert confidence(10, 5, 0.1) == pytest.approx(0.00163, abs=5e-6)
    assert weak_confidence(10, 5, 0.9) == pytest.approx(0.99985, abs=5e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.floats(0.0, 1.0))
def test_theorem_1_is_a_distribution(m: int, p: float) -> None:
    values = [confidence(m, k, p) for k in range(m + 1)]
    assert values[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert values[m] == pytest.approx(p**m, rel=1e-9)
    # At least k good and at most k - 1 good, that is at least m - k + 1 weak, exclude each other and exhaust.
    for k in range(1, m + 1):
        assert confidence(m, k, p) + confidence(m, m - k + 1, 1 - p) == pytest.approx(1.0, abs=1e-9)


def test_theorem_1_large_m_and_bad_input() -> None:
    assert confidence(2000, 1000, 0.5) == pytest.approx(0.5, abs=0.01)
    for m, k, p, word in [(0, 0, 0.5, "m must"), (3, 4, 0.5, "k must"), (3, 1, 1.5, "p must"), (3, 1, math.nan, "p")]:
        with pytest.raises(InputError, match=word):
            confidence(m, k, p)


def test_state_round_trip_through_a_weights_only_file(tmp_path: object) -> None:
    trained = make(3)
    file = f"{tmp_path}/filter.pt"
    torch.save(trained.state_dict(), file)
    again = TrainedFilter.from_state_dict(torch.load(file, weights_only=True))
    assert again.report == trained.report
    assert again.threshold == trained.threshold
    assert np.array_equal(again.log_prob_weak(paths(30)), trained.log_prob_weak(paths(30)))


def test_state_bad_input() -> None:
    state = make(3).state_dict()
    with pytest.raises(InputError, match="lacks weights"):
        TrainedFilter.from_state_dict({k: v for k, v in state.items() if k != "weights"})
    with pytest.raises(InputError, match="report"):
        TrainedFilter.from_state_dict({**state, "report": {}})
    with pytest.raises(InputError, match="do not fit"):
        TrainedFilter.from_state_dict({**state, "hidden": 7})
