"""`bench step_overhead`: its rows, that it refuses to compare updates that differ, and no process group left behind."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from bench_budget import TINY

from greedynas_fast.bench import step_overhead
from greedynas_fast.supernet import BankSGD

UPDATES = ["core", "torch SGD foreach + zero_grad", "copy"]
BOOKKEEPING = [
    "core, uniform paths",
    "core, path filter at q = 0.5",
    "core, path filter at q = 0.5, bf16 screen",
    "core, path filter at q = 0.9",
    "core, path filter at q = 0.9, bf16 screen",
    "torch, uniform paths",
]
PASSES = ["plain", "DDP, find_unused_parameters"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(step_overhead, "torch_threads", lambda count: contextlib.nullcontext())
    for name, value in {
        "SPACES": ("sample",),
        "EVICT_FLOATS": 1,
        "DRAWN": 3,
        "THRESHOLD_PATHS": 100,
        "HIDDEN": 16,
        "DDP_SIZE": 28,
    }.items():
        monkeypatch.setattr(step_overhead, name, value)


def test_rows() -> None:
    rows = step_overhead.measure(TINY)
    assert not torch.distributed.is_initialized()
    assert [row["provider"] for row in rows] == UPDATES + BOOKKEEPING + PASSES
    for row in rows:
        assert (row["name"], row["threads"], row["skipped"]) == ("step_overhead.sample", 1, None)
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
    by_name = {row["provider"]: row for row in rows}
    assert 0 <= by_name["core"]["max_error"] <= step_overhead.TOLERANCE
    assert by_name["copy"]["share_of_copy"] == 1
    assert all(by_name[name]["share_of_copy"] > 0 and by_name[name]["gb_per_s"] > 0 for name in UPDATES)
    assert by_name["core"]["note"].startswith("update, 0.")
    for name in BOOKKEEPING[1:-1]:
        assert by_name[name]["peer"] is None, "a filter does what no peer does"
    for peer, names in ((UPDATES[1], UPDATES), (BOOKKEEPING[-1], BOOKKEEPING[:1]), (PASSES[0], PASSES)):
        assert all(by_name[name]["peer"] == peer for name in names)
        assert by_name[peer]["ratio_to_best_peer"] == 1


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_refuses_updates_that_differ(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = BankSGD.step

    def wrong(self: BankSGD, path: Any, lr: float, **options: Any) -> bool:
        return right(self, path, lr * factor, **options)

    monkeypatch.setattr(BankSGD, "step", wrong)
    with pytest.raises(RuntimeError, match=r"step_overhead\.sample: the update and torch's disagree by (0|nan)"):
        step_overhead.measure(TINY)


def test_says_why_there_is_no_figure_for_ddp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    (row,) = step_overhead.measure(TINY)[len(UPDATES) + len(BOOKKEEPING) :]
    assert row["skipped"] == "torch.distributed does not work here (a process group exists already)"
