"""`bench filter`: the peers are the same network, rows are complete, and wrong scores give no figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bench_budget import TINY, shrink

from greedynas_fast import paths
from greedynas_fast.bench import filter as bench_filter
from greedynas_fast.bench.peers import LiteralFilter, NumpyFilter, TableFilter, in_chunks
from greedynas_fast.filter import FilterEngine, PathFilter


def test_peers_are_the_same_network() -> None:
    net = PathFilter([3, 1, 4, 2, 5], hidden=16, seed=3, embedding_std=1.0)
    mask = np.arange(5)[None] < np.array(net.num_ops)[:, None]
    batch = paths.propose(mask, 0, 0, 0, 70)
    expected = in_chunks(LiteralFilter(net, torch.float64), 70)(batch)
    assert expected.dtype == np.float64
    assert expected.std() > 1e-3
    with torch.no_grad():  # the definition, one path at a time, in torch's own words
        for path, value in zip(batch[:5].tolist(), expected, strict=False):
            embedded = torch.stack([net.embedding[layer, op] for layer, op in enumerate(path)])[None]
            last = net.lstm(embedded)[1][0].reshape(1, -1)
            scores = torch.log_softmax(net.fc2(torch.relu(net.fc1(last))), dim=1)
            assert float(scores[0, 1]) == pytest.approx(value, abs=1e-6)
    peers: dict[str, Any] = {
        "literal": in_chunks(LiteralFilter(net), 13),
        "table": in_chunks(TableFilter(net, torch.float32), 13),
        "numpy": NumpyFilter(net),
    }
    for name, score in peers.items():
        np.testing.assert_allclose(score(batch), expected, rtol=0, atol=1e-6, err_msg=name)
    for peer in (LiteralFilter(net, torch.bfloat16), TableFilter(net, torch.bfloat16)):
        rounded = in_chunks(peer, 70)(batch)
        assert rounded.dtype == np.float32
        assert 1e-7 < np.abs(rounded - expected).max() < 2e-2


def test_the_literal_peer_shares_the_weights() -> None:
    net = PathFilter([3, 2], hidden=16, seed=0)
    literal, copied = LiteralFilter(net), LiteralFilter(net, torch.float64)
    batch = np.array([[0, 1], [2, 0]], dtype=np.uint8)
    before = in_chunks(copied, 2)(batch)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    np.testing.assert_allclose(in_chunks(literal, 2)(batch), net.log_prob_weak(batch), atol=1e-6)
    np.testing.assert_array_equal(in_chunks(copied, 2)(batch), before)


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, bench_filter, threads=2)
    rows = bench_filter.measure(TINY)
    for threads in (1, 2):
        here = {row["provider"]: row for row in rows if row["threads"] == threads}
        done = {name: row for name, row in here.items() if row["skipped"] is None}
        assert here.keys() - done.keys() == {"torch.compile"}
        assert ("numpy with table" in done) == (threads == 1)
        engines = {name for name in done if name.startswith("engine")}
        assert engines == {"engine float32", "engine bf16"}
        peers = done.keys() - engines
        assert len(peers) == (5 if threads == 1 else 4)
        p50 = {name: row["paths_per_s"]["p50"] for name, row in done.items()}
        torch_float32 = {name for name in peers if "bf16" not in name and "numpy" not in name}
        for name, row in done.items():
            best = max(peers if "bf16" in name else torch_float32, key=lambda peer: p50[peer])
            assert row["peer"] == best
            assert row["ratio_to_best_peer"] == pytest.approx(p50[name] / p50[best])
            assert row["max_error"] <= (2e-2 if "bf16" in name else 1e-5)
            assert row["decision_agreement"] >= 0.99
            assert row["paths"] > 0
            assert 256 <= row["compared_paths"] <= TINY.check_paths
            assert row["isa"] == ("-" if "numpy" in name else row["isa"].lower())
        assert here["torch.compile"]["paths_per_s"] is None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("wrong", [0.03, np.nan])
def test_refuses_wrong_scores(monkeypatch: pytest.MonkeyPatch, precision: str, wrong: float) -> None:
    shrink(monkeypatch, bench_filter)
    right = FilterEngine.log_prob_weak

    def one_wrong(self: FilterEngine, batch: Any) -> Any:
        scores = right(self, batch).copy()
        if self.precision == precision:
            scores[-1] += wrong
        return scores

    monkeypatch.setattr(FilterEngine, "log_prob_weak", one_wrong)
    with pytest.raises(RuntimeError, match=f"filter: engine {precision} and the float64 reference disagree"):
        bench_filter.measure(TINY)


def test_rejecting_everything_is_no_agreement() -> None:
    reference = np.random.default_rng(0).normal(-0.7, 1e-3, 4096)
    setup = bench_filter.Setup(
        PathFilter([2], hidden=16), np.zeros((4096, 1), np.uint8), reference, float(np.quantile(reference, 0.01))
    )
    version = bench_filter.Version("v", "bf16", "engine", "-", lambda batch: reference[: len(batch)], rate=1e9)
    accuracy = bench_filter.check(version, setup, 1.0)
    assert (accuracy.max_error, accuracy.decision_agreement, accuracy.accepted_overlap) == (0, 1, 1)
    weak = replace(version, score=lambda batch: np.maximum(reference, setup.threshold + 1e-6))
    assert bench_filter.compare(weak.score(setup.paths), reference, setup.threshold).decision_agreement > 0.985
    with pytest.raises(RuntimeError, match="0% of the accepted paths alike"):
        bench_filter.check(weak, setup, 1.0)


def test_compile_that_does_not_work_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, bench_filter)

    def broken(*arguments: Any, **options: Any) -> Any:
        def call(batch: Any) -> Any:
            raise OSError("no compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    rows = bench_filter.measure(replace(TINY, compile=True))
    skipped = {row["provider"]: row["skipped"] for row in rows if row["skipped"]}
    assert skipped["torch.compile float32"] == "torch.compile does not work here (OSError)"
    assert "torch.compile bf16" in skipped
