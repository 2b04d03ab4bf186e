"""`bench sampler`: rows are complete, and a sampler that accepts other paths gives no figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench_budget import TINY, shrink

from greedynas_fast import spaces
from greedynas_fast.bench import sampler
from greedynas_fast.filter import PathFilter
from greedynas_fast.sampling import FilterSampler


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, sampler, threads=2)
    monkeypatch.setattr(sampler, "CHECKED", 5)
    monkeypatch.setattr(sampler, "MIN_ACCEPTED", 2)
    rows = sampler.measure(TINY)
    own = {f"FilterSampler, engine {what}" for what in ("float32", "bf16", "float32, bf16 screen")}
    for threads in (1, 2):
        here = {row["provider"]: row for row in rows if row["threads"] == threads}
        assert here.keys() == {*own, sampler.LITERAL, sampler.BULK}
        p50 = {name: row["paths_per_s"]["p50"] for name, row in here.items()}
        best = max((sampler.LITERAL, sampler.BULK), key=lambda name: p50[name])
        for name, row in here.items():
            assert row["peer"] == best
            assert row["ratio_to_best_peer"] == pytest.approx(p50[name] / p50[best])
            assert row["ratio_to_literal"] == pytest.approx(p50[name] / p50[sampler.LITERAL])
            assert row["accepted_per_s"] == pytest.approx({key: rate / 100 for key, rate in row["paths_per_s"].items()})


Setup = sampler.Setup


@pytest.fixture
def setup() -> Setup:
    space = spaces.get("sample")
    net = PathFilter(space, hidden=16, seed=0)
    made = Setup(space, net, 0.0)
    scores = made.bulk_scores(made.propose(0, 400)).astype(np.float64)
    return replace(made, threshold=float(np.quantile(scores, 0.1)))


def draw(setup: Setup, wanted: int) -> tuple[Any, int]:
    batch = FilterSampler(
        setup.space, setup.net, threshold=setup.threshold, seed=sampler.SEED, stream=sampler.PROPOSALS
    ).sample(wanted)
    return batch.paths, batch.proposals


def test_verify_accepts_the_same_paths(setup: Setup) -> None:
    sampler.verify("s", lambda wanted: draw(setup, wanted), setup, setup.bulk_scores, wanted=20)


@pytest.mark.parametrize("change", ["missing", "other order", "not accepted", "too few"])
def test_verify_refuses_other_paths(setup: Setup, change: str) -> None:
    def wrong(wanted: int) -> tuple[Any, int]:
        found, proposals = draw(setup, wanted)
        if change == "missing":
            found, proposals = np.delete(draw(setup, wanted + 1)[0], 3, axis=0), draw(setup, wanted + 1)[1]
        elif change == "other order":
            found = found[[1, 0, *range(2, len(found))]]
        elif change == "not accepted":
            scores = setup.bulk_scores(setup.propose(0, proposals))
            found[-1] = setup.propose(0, proposals)[np.argmax(scores)]
        else:
            found = found[:-1]
        return found, proposals

    with pytest.raises(RuntimeError, match="sampler: s and the bulk loop disagree"):
        sampler.verify("s", wrong, setup, setup.bulk_scores, wanted=20)


def test_verify_lets_paths_at_the_threshold_differ(setup: Setup) -> None:
    accepted, proposals = draw(setup, 20)
    scores = setup.bulk_scores(accepted).astype(np.float64)
    edge = int(np.argmax(scores))
    near = replace(setup, threshold=float(scores[edge]))
    without = np.delete(accepted, edge, axis=0)
    sampler.verify("s", lambda wanted: (without, proposals), near, near.bulk_scores, wanted=19)
    sampler.verify("s", lambda wanted: (accepted, proposals), near, near.bulk_scores, wanted=20)


def test_refuses_a_sampler_that_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, sampler)
    right = FilterSampler.sample

    def skips(self: FilterSampler, n: int) -> Any:
        batch = right(self, n + 1)
        return replace(batch, paths=batch.paths[1:])

    monkeypatch.setattr(FilterSampler, "sample", skips)
    monkeypatch.setattr(sampler, "CHECKED", 3)
    with pytest.raises(RuntimeError, match="FilterSampler, engine float32 and the bulk loop disagree"):
        sampler.measure(TINY)
