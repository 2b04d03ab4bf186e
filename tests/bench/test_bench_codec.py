"""`bench codec`: its peers against plain integers, its rows, and that it refuses what is wrong."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from bench_budget import TINY

from greedynas_fast import paths
from greedynas_fast.bench import codec


def integers(keys: np.ndarray) -> list[int]:
    return [(high << 64) + low for high, low in keys.tolist()]


def test_numpy_peers_agree_with_plain_integers() -> None:
    batch = np.random.default_rng(0).integers(0, 32, (50, 23), dtype=np.uint8)
    keys = codec.numpy_pack(batch)
    for path, key in zip(batch.tolist(), integers(keys), strict=True):
        value = 0
        for op in path:
            value = value * 32 + op
        assert key == value << (128 - 5 * len(path))
    np.testing.assert_array_equal(codec.numpy_unpack(keys, 23), batch)


def test_peers_of_sets_agree_with_plain_integers() -> None:
    keys = np.random.default_rng(1).integers(0, 3, (40, 2), dtype=np.uint64)
    values = integers(keys)
    distinct = sorted(set(values))
    for unique, first, inverse in (codec.numpy_unique(keys), codec.lexsort_unique(keys)):
        assert integers(unique) == distinct
        assert first.tolist() == [values.index(value) for value in distinct]
        assert inverse.tolist() == [distinct.index(value) for value in values]
    assert codec.python_add(keys).tolist() == [value not in values[:index] for index, value in enumerate(values)]


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREEDYNAS_NUM_THREADS", "2")
    rows = codec.measure(TINY)
    assert os.environ["GREEDYNAS_NUM_THREADS"] == "2"
    core = [(row["name"], row["threads"]) for row in rows if row["provider"] == "core"]
    packing = [(name, threads) for threads in (1, 2) for name in ("codec.pack", "codec.unpack")]
    assert core == [*packing, ("codec.unique", 1), ("codec.add", 1)]
    for row in rows:
        rate = row["paths_per_s"]
        assert 0 < rate["p20"] <= rate["p50"] <= rate["p80"]
        assert (row["paths"], row["repeats"]) == (3000, TINY.repeats)
        assert row["skipped"] is None
        assert (row["provider"] == "core") == (row["isa"] != "-")
    for core_row, peer in ((rows[0], rows[1]), (rows[2], rows[3])):
        assert core_row["peer"] == peer["peer"] == peer["provider"] == "numpy"
        assert peer["ratio_to_best_peer"] == 1
        ratio = core_row["paths_per_s"]["p50"] / peer["paths_per_s"]["p50"]
        assert core_row["ratio_to_best_peer"] == pytest.approx(ratio)


def wrong_keys(batch: Any) -> Any:
    return np.zeros((len(batch), 2), dtype=np.uint64)


def wrong_paths(keys: Any, layers: int) -> Any:
    return np.zeros((len(keys), layers), dtype=np.uint8)


@pytest.mark.parametrize(("name", "wrong"), [("pack", wrong_keys), ("unpack", wrong_paths)])
def test_refuses_what_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any) -> None:
    monkeypatch.setattr(paths, name, wrong)
    with pytest.raises(RuntimeError, match=rf"codec\.{name}: core and numpy disagree, so there is no figure to give"):
        codec.measure(TINY)


def test_refuses_wrong_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.KeySet, "add", lambda self, keys: np.ones(len(keys), dtype=np.bool_))
    with pytest.raises(RuntimeError, match=r"codec\.add: core and numpy disagree"):
        codec.measure(TINY)
