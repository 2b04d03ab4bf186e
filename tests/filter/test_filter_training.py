"""Training: a problem that can be learned, determinism, labels, and bad input."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterConfig, TrainedFilter, auroc, train_filter, training
from greedynas_fast.filter.training import LossName

NUM_OPS = [3, 3, 3, 3]
SPACE = np.array(list(itertools.product(range(3), repeat=4)), dtype=np.uint8)
LOSS = -SPACE.astype(float) @ np.array([1.0, 0.7, 0.5, 0.3])
QUICK = FilterConfig(steps=100, batch_size=64, hidden=16, lr=3e-3, embedding_std=1.0, mixup_batch=16)
SHORT = replace(QUICK, steps=15)


def train(config: FilterConfig = QUICK, seed: int = 0, q: float = 0.7, **kwargs: object) -> TrainedFilter:
    return train_filter(NUM_OPS, SPACE, LOSS, SPACE, q, config, seed, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["vpu", "nnpu", "upu", "pn", "rank"])
def test_every_loss_learns_a_linear_order(loss: LossName) -> None:
    trained = train(replace(QUICK, loss=loss))
    weak = np.zeros(81, bool)
    weak[np.argsort(-LOSS, kind="stable")[: round(0.7 * 81)]] = True
    assert auroc(trained.log_prob_weak(SPACE), weak) > 0.9
    assert not trained.collapsed
    assert trained.report.reason == ""
    assert np.count_nonzero(~trained.is_weak(SPACE)) == round(0.3 * 81)
    assert np.isfinite(trained.report.final_loss)
    assert trained.report.auroc is not None
    assert trained.report.auroc > 0.8


def test_same_seed_same_bits_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the point is that it does not matter
    before = torch.random.get_rng_state()
    first = train(SHORT)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = train(SHORT), train(SHORT, seed=1)
    assert first.report == second.report
    assert np.array_equal(first.log_prob_weak(SPACE), second.log_prob_weak(SPACE))
    assert not np.array_equal(first.log_prob_weak(SPACE), other.log_prob_weak(SPACE))


@pytest.mark.parametrize("hidden", [16, 256])
def test_threads_are_as_they_were(monkeypatch: pytest.MonkeyPatch, hidden: int) -> None:
    """Small filters are trained on one thread; an error gives the others back too."""
    seen = []

    def fail(*arguments: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_loss", fail)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyboardInterrupt):
            train(replace(SHORT, hidden=hidden, batch_size=256))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1 if hidden == 16 else 3]


def test_who_is_trained_on_and_who_judges() -> None:
    pu = train(replace(QUICK, steps=1, holdout=0.25), q=0.5).report
    assert (pu.num_weak + pu.held_out_weak, pu.num_good, pu.held_out_good) == (40, 0, 41)
    assert pu.held_out_weak == 10
    supervised = train(replace(QUICK, steps=1, holdout=0.25, loss="pn"), q=0.5).report
    assert (supervised.num_weak, supervised.held_out_weak) == (30, 10)
    assert (supervised.num_good, supervised.held_out_good) == (31, 10)
    assert train(replace(QUICK, steps=1, holdout=0.0, loss="rank")).report.auroc is None


def test_labels_are_the_worst_share_and_losses_that_are_not_finite_count_as_the_worst() -> None:
    paths = SPACE[[0, 40, 80]]
    config = replace(QUICK, loss="pn", holdout=0.0, steps=150)
    trained = train_filter(NUM_OPS, paths, [0.5, np.nan, 0.1], SPACE, 0.34, config, 0)
    assert (trained.report.num_weak, trained.report.num_good) == (1, 2)
    values = trained.log_prob_weak(paths)
    assert values.argmax() == 1
    # Ranks in place of classes: the last is best, the first in between, the one without a loss worst.
    ranked = train_filter(NUM_OPS, paths, [0.5, np.inf, 0.1], SPACE, 0.5, replace(config, loss="rank"), 0)
    phi = np.exp(ranked.log_prob_weak(paths))
    assert phi == pytest.approx([0.5, 1.0, 0.0], abs=0.15)


def test_a_filter_that_cannot_learn_is_reported_and_rejects_nothing() -> None:
    config = replace(QUICK, weight_decay=10.0, lr=0.02, mixup_lambda=0.0)
    trained = train(config)
    assert trained.collapsed
    assert "hardly varies" in trained.report.reason
    assert not trained.is_weak(SPACE).any()
    noise = train_filter(
        NUM_OPS, SPACE, np.random.default_rng(3).permutation(81), SPACE, 0.5, replace(QUICK, steps=5, lr=1e-3), 0
    )
    assert noise.report.auroc is not None
    assert noise.collapsed == (noise.report.auroc <= noise.report.auroc_bound)


def test_a_diverged_filter_is_reported_with_plain_numbers() -> None:
    trained = train(replace(QUICK, lr=1e30, steps=4))
    assert trained.collapsed
    assert trained.report.reason == "the filter's output is not finite"
    assert (trained.threshold, trained.report.spread, trained.report.final_loss) == (0.0, 0.0, None)
    assert not trained.is_weak(SPACE).any()


def test_warm_start_goes_on_from_the_earlier_weights() -> None:
    first = train(SHORT)
    still = replace(QUICK, steps=1, lr=1e-12, warm_start=True)
    again = train(still, seed=5, initial=first)
    assert again.log_prob_weak(SPACE) == pytest.approx(first.log_prob_weak(SPACE), abs=1e-5)
    fresh = train(replace(still, warm_start=False), seed=5, initial=first)
    assert abs(fresh.log_prob_weak(SPACE) - first.log_prob_weak(SPACE)).max() > 0.1
    with pytest.raises(InputError, match="initial"):
        train(replace(still, hidden=8), initial=first)


def test_average_and_cosine_change_the_weights_and_stay_deterministic() -> None:
    config = replace(SHORT, average=0.9, schedule="cosine")
    first, second, plain = train(config), train(config), train(SHORT)
    assert np.array_equal(first.log_prob_weak(SPACE), second.log_prob_weak(SPACE))
    assert not np.array_equal(first.log_prob_weak(SPACE), plain.log_prob_weak(SPACE))


def test_max_rule_and_state_round_trip() -> None:
    trained = train(replace(QUICK, threshold_rule="max"))
    values = trained.log_prob_weak(SPACE)
    assert trained.threshold == pytest.approx(float(values.max()) + np.log(0.5), abs=1e-6)
    again = TrainedFilter.from_state_dict(trained.state_dict())
    assert np.array_equal(again.is_weak(SPACE), trained.is_weak(SPACE))
    assert again.report == trained.report


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "bce"),
        ("schedule", "step"),
        ("threshold_rule", "median"),
        ("steps", 0),
        ("batch_size", 0),
        ("hidden", 0),
        ("mixup_batch", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("mixup_alpha", -1.0),
        ("embedding_std", 0.0),
        ("weight_decay", -1e-3),
        ("mixup_lambda", -0.1),
        ("average", 1.0),
        ("holdout", 1.0),
        ("prior", 1.0),
    ],
)
def test_bad_configuration(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        FilterConfig(**{field: value})  # type: ignore[arg-type]


def test_bad_data() -> None:
    with pytest.raises(InputError, match="q must"):
        train(q=1.0)
    with pytest.raises(InputError, match="one loss a scored path"):
        train_filter(NUM_OPS, SPACE, LOSS[:5], SPACE, 0.5, QUICK, 0)
    with pytest.raises(InputError, match="at least 2"):
        train_filter(NUM_OPS, SPACE[:1], LOSS[:1], SPACE, 0.5, QUICK, 0)
    with pytest.raises(InputError, match="unlabeled"):
        train_filter(NUM_OPS, SPACE, LOSS, SPACE[:0], 0.5, QUICK, 0)
    with pytest.raises(InputError, match="none of the losses"):
        train_filter(NUM_OPS, SPACE, np.full(81, np.nan), SPACE, 0.5, QUICK, 0)
    with pytest.raises(InputError, match="which has 3 operations"):
        train_filter(NUM_OPS, SPACE + 1, LOSS, SPACE, 0.5, QUICK, 0)
