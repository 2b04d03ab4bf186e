"""Operation shrinkage against its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.errors import InputError
from greedynas_fast.filter import Merge, shrink_operations, similarity_matrices


def directions(*degrees: float) -> np.ndarray:
    """Unit vectors in a plane, one layer."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)[None]


def test_similarity_is_the_cosine_of_allowed_pairs() -> None:
    embedding = torch.from_numpy(directions(0, 60, 180) * 3).requires_grad_()
    allowed = np.array([[True, True, True]])
    expected = np.cos(np.radians([[0, 60, 180], [60, 0, 120], [180, 120, 0]]))
    assert similarity_matrices(embedding, allowed)[0] == pytest.approx(expected, abs=1e-6)
    allowed[0, 2] = False
    assert similarity_matrices(embedding, allowed)[0, 2].tolist() == [0, 0, 0]
    assert similarity_matrices(np.zeros((1, 2, 3)), allowed[:, :2]).tolist() == [[[0, 0], [0, 0]]]
    assert similarity_matrices(np.full((1, 2, 3), np.nan), allowed[:, :2]).tolist() == [[[0, 0], [0, 0]]]


def test_pairs_go_in_descending_similarity_and_a_removed_one_never_returns() -> None:
    # 0-1: 20 degrees, 1-2: 10 degrees, 0-2: 30 degrees; all above 0.8.
    allowed = np.ones((1, 3), bool)
    after, merges = shrink_operations(directions(0, 20, 30), allowed, np.array([[5, 9, 7]]))
    # 1-2 first keeps 2 (fewer MACs); 0-1 is gone with 1; 0-2 keeps 0.
    assert [(m.kept, m.removed) for m in merges] == [(2, 1), (0, 2)]
    assert merges[0].similarity == pytest.approx(np.cos(np.radians(10)), abs=1e-6)
    assert after.tolist() == [[True, False, False]]
    assert allowed.all()


def test_threshold_is_exclusive_and_ties_keep_the_lower_index() -> None:
    embedding = np.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
    macs = np.array([[4, 4, 1]])
    assert shrink_operations(embedding, np.ones((1, 3), bool), macs, 1.0)[1] == []
    after, merges = shrink_operations(embedding, np.ones((1, 3), bool), macs, 0.99)
    assert merges == [Merge(0, 0, 1, 1.0)]
    assert after.tolist() == [[True, False, True]]


def test_removed_operations_are_ignored() -> None:
    allowed = np.array([[True, False, True]])
    after, merges = shrink_operations(directions(0, 1, 90), allowed, np.array([[1, 0, 1]]))
    assert merges == []
    assert after.tolist() == allowed.tolist()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 10_000), st.floats(-1.0, 1.0))
def test_rules_hold(layers: int, ops: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(layers, ops, 2)).astype(np.float32)
    allowed = rng.random((layers, ops)) < 0.7
    allowed[np.arange(layers), rng.integers(0, ops, layers)] = True
    macs = rng.integers(0, 3, (layers, ops))
    after, merges = shrink_operations(embedding, allowed, macs, threshold)
    assert after.any(axis=1).all()
    assert not (after & ~allowed).any()
    assert after.sum() == allowed.sum() - len(merges)
    gone: set[tuple[int, int]] = set()
    for merge in merges:
        assert (merge.layer, merge.kept) not in gone
        assert (merge.layer, merge.removed) not in gone
        assert merge.similarity > threshold
        kept, removed = macs[merge.layer, merge.kept], macs[merge.layer, merge.removed]
        assert kept < removed or (kept == removed and merge.kept < merge.removed)
        gone.add((merge.layer, merge.removed))
    for layer in range(layers):
        values = [merge.similarity for merge in merges if merge.layer == layer]
        assert values == sorted(values, reverse=True)
        left = np.flatnonzero(after[layer])
        rest = similarity_matrices(embedding, after)[layer][np.ix_(left, left)]
        assert (rest[~np.eye(len(left), dtype=bool)] <= threshold).all()


def test_bad_input() -> None:
    good = np.ones((1, 2), bool)
    with pytest.raises(InputError, match="allowed"):
        similarity_matrices(np.zeros((1, 3, 2)), good)
    with pytest.raises(InputError, match="macs"):
        shrink_operations(np.zeros((1, 2, 2)), good, np.zeros((2, 2), int))
    with pytest.raises(InputError, match="threshold"):
        shrink_operations(np.zeros((1, 2, 2)), good, np.zeros((1, 2), int), 1.5)
