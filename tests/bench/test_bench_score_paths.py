"""`bench score_paths`: its rows, and what it refuses."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from bench_budget import TINY

from greedynas_fast.bench import score_paths
from greedynas_fast.bench.score_paths import Setting, same_order
from greedynas_fast.supernet import PathScores

LOOPS = [f"one path at a time, {version}" for version in ("fused", "reference NCHW", "reference channels_last")]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(score_paths, "torch_threads", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(score_paths, "QUICK_SETTINGS", (Setting("sample", 9, 4, 28, 7, 3),))


def test_rows() -> None:
    rows = score_paths.measure(TINY)
    assert [row["provider"] for row in rows] == ["shared prefixes", *LOOPS]
    assert [row["paths"] for row in rows] == [9, 3, 3, 3]
    for row in rows:
        assert (row["name"], row["threads"], row["repeats"]) == ("score_paths.sample", 1, TINY.repeats)
        assert row["peer"] in LOOPS[1:]
        assert row["ratio_to_best_peer"] > 0
        assert 0 <= row["max_error"] < score_paths.TOLERANCE
    assert rows[0]["max_error"] == rows[1]["max_error"], "the same calls, the same bits"
    assert rows[1]["note"] == "4 images at 28; timed on 3 of 9 paths"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda loss: loss * 1.01, r"shared prefixes and torch's loop disagree by 0\.01"),
        (lambda loss: loss * math.nan, "shared prefixes and torch's loop disagree by nan"),
    ],
)
def test_refuses_wrong_losses(monkeypatch: pytest.MonkeyPatch, wrong, message) -> None:
    right = score_paths.score_paths

    def spoilt(*args, **options) -> PathScores:
        scores = right(*args, **options)
        return PathScores(wrong(scores.loss), scores.accuracy)

    monkeypatch.setattr(score_paths, "score_paths", spoilt)
    with pytest.raises(RuntimeError, match=message):
        score_paths.measure(TINY)


def test_refuses_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_paths, "refuse", lambda *_: None)
    monkeypatch.setattr(
        score_paths, "score_paths", lambda net, paths, *_, **__: PathScores(np.arange(9.0), np.zeros(9))
    )
    with pytest.raises(RuntimeError, match="shared prefixes and torch's loop put the paths in another order"):
        score_paths.measure(TINY)


def test_order_up_to_ties() -> None:
    wanted = np.array([1.0, 2.0, 2.0 + score_paths.TOLERANCE])
    assert same_order(wanted, wanted)
    assert same_order(np.array([1.0, 2.1, 2.0]), wanted)
    assert not same_order(np.array([2.05, 2.0, 2.1]), wanted)
