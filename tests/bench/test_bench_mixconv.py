"""`bench mixconv` and `bench depthwise`: rows are complete, and a wrong result gives no figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bench_budget import TINY, shrink

from greedynas_fast.bench import depthwise, mixconv


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, mixconv)
    monkeypatch.setattr(mixconv, "QUICK_SHAPES", ((2, 10, 6),))
    monkeypatch.setattr(mixconv, "SHAPES", ((2, 10, 6), (1, 7, 5)))


def test_rows() -> None:
    rows = mixconv.measure(TINY)
    assert len(rows) == 3 * 2
    assert {row["name"] for row in rows} == {"mixconv"}
    core = [row for row in rows if row["provider"].startswith("core")]
    for row, (precision, limit) in zip(core, mixconv.MAX_ERROR.items(), strict=True):
        assert row["provider"] == f"core {precision}"
        assert row["peer"].startswith("torch")
        assert row["max_error"] <= limit
        assert row["note"] == "2x10x6x6 k3,5,7"
    rows = depthwise.measure(replace(TINY, repeats=4))
    assert len(rows) == 3 * 2 * 3 * 2
    assert {row["name"] for row in rows} == {"depthwise"}


def test_refuses_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mixconv.mixconv

    def wrong(*args: Any, **kwargs: Any) -> torch.Tensor:
        return right(*args, **kwargs) * 1.05

    monkeypatch.setattr(mixconv, "mixconv", wrong)
    with pytest.raises(RuntimeError, match="mixconv: core float32 and the float64 reference disagree"):
        mixconv.measure(TINY)
