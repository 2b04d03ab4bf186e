"""`bench filter_training`: its rows, and that it refuses wrong gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from bench_budget import TINY
from torch import Tensor

from greedynas_fast.bench import filter_training
from greedynas_fast.bench.filter_training import Setting
from greedynas_fast.filter import PathFilter


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(filter_training, "torch_threads", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(filter_training, "SETTINGS", (Setting("sample", 9, 20),))


def test_rows() -> None:
    rows = filter_training.measure(TINY)
    assert [row["provider"] for row in rows] == ["core", "torch with table", "nn.LSTM"]
    for row in rows:
        assert (row["name"], row["threads"], row["paths"]) == ("filter_training.sample", 1, 20)
        assert row["peer"] in ("torch with table", "nn.LSTM")
        assert row["ratio_to_best_peer"] > 0
        assert 0 <= row["max_error"] <= filter_training.TOLERANCE
        assert row["note"] == "6 layers, 9 units, 20 paths"


def test_refuses_wrong_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PathFilter.by_torch

    def spoilt(net: PathFilter, paths: Tensor) -> Tensor:
        output = right(net, paths)
        return output + 0.01 * (output - output.detach())  # the gradient alone

    monkeypatch.setattr(PathFilter, "by_torch", spoilt)
    with pytest.raises(RuntimeError, match=r"filter_training\.sample: torch with table and .* disagree by 0\.01"):
        filter_training.measure(TINY)
