"""Crossover and mutation: what may happen, how often, and from what."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from greedynas_fast import paths
from greedynas_fast.errors import InputError

COUNTERS = {
    "seed": st.integers(0, 2**64 - 1),
    "stream": st.integers(0, 2**32 - 1),
    "start": st.integers(0, 2**63),
    "probability": st.floats(0, 1),
}
N = 60_000


def assert_chi_square(counts: np.ndarray, expected: np.ndarray, degrees: int) -> None:
    """Seeds are fixed, so this cannot flake; some 700 such tests run here, so only a tail of 1e-6 speaks."""
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), degrees) > 1e-6


def assert_counts(counts: np.ndarray, shares: np.ndarray) -> None:
    """Counts against expected shares."""
    assert_chi_square(counts, counts.sum() * shares, len(counts) - 1)


def assert_independent(first: np.ndarray, second: np.ndarray) -> None:
    """The table of two small integer arrays against the product of its margins."""
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    assert_chi_square(table, expected, (table.shape[0] - 1) * (table.shape[1] - 1))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 20), st.just(2), st.integers(1, 25)), elements=st.integers(0, 31)),
       st.integers(0, 20), st.fixed_dictionaries(COUNTERS))  # fmt: skip
def test_a_pair_of_children_depends_on_its_index_alone(parents: np.ndarray, cut: int, values: dict[str, Any]) -> None:
    whole = paths.crossover(parents, **values)
    assert (whole.shape, whole.dtype) == ((2 * len(parents), parents.shape[2]), np.uint8)
    np.testing.assert_array_equal(np.sort(whole.reshape(parents.shape), axis=1), np.sort(parents, axis=1))
    cut = min(cut, len(parents))
    later = values | {"start": values["start"] + cut}
    parts = [paths.crossover(parents[:cut], **values), paths.crossover(parents[cut:], **later)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(hnp.arrays(np.bool_, st.tuples(st.integers(1, 25), st.integers(1, 32))),
       st.integers(0, 20), st.fixed_dictionaries(COUNTERS))  # fmt: skip
def test_a_mutant_depends_on_its_index_alone(mask: np.ndarray, cut: int, values: dict[str, Any]) -> None:
    mask[:, -1] |= ~mask.any(axis=1)
    before = paths.propose(mask, 1, 2, 3, 20)
    whole = paths.mutate(before, mask, **values)
    assert mask[np.arange(len(mask)), whole].all()
    single = mask.sum(axis=1) == 1
    np.testing.assert_array_equal(whole[:, single], before[:, single])
    later = values | {"start": values["start"] + cut}
    parts = [paths.mutate(before[:cut], mask, **values), paths.mutate(before[cut:], mask, **later)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9, 1.0])
def test_crossed_pairs_and_swapped_layers(probability: float) -> None:
    parents = np.zeros((N, 2, 25), dtype=np.uint8)
    parents[:, 1] = 1
    first = paths.crossover(parents, probability, 11, 3, 0).reshape(N, 2, 25)[:, 0]  # 1 where a layer was swapped
    crossed = first.any(axis=1)  # but for one in 2**25
    if probability in (0.0, 1.0):
        assert (crossed == bool(probability)).all()
    else:
        assert_counts(np.bincount(crossed, minlength=2), np.array([1 - probability, probability]))
    swapped = first[crossed]
    for layer in range(25 if probability else 0):
        assert_counts(np.bincount(swapped[:, layer], minlength=2), np.array([0.5, 0.5]))
        assert_independent(swapped[:, layer], swapped[:, (layer + 1) % 25])


@pytest.mark.parametrize("operations", [1, 2, 3, 13, 21, 32])
@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_mutants_are_uniform_over_the_others(operations: int, probability: float) -> None:
    rng = np.random.default_rng(operations)
    mask = np.zeros((6, 32), dtype=bool)
    for layer in range(6):
        mask[layer, rng.permutation(32)[:operations]] = True
    before = np.tile([rng.choice(np.flatnonzero(row)) for row in mask], (N, 1))
    after = paths.mutate(before, mask, probability, 3, 1, 0)
    changed = after != before
    if operations == 1 or probability == 0:
        assert not changed.any()
        return
    for layer in range(6):
        if probability < 1:
            assert_counts(np.bincount(changed[:, layer], minlength=2), np.array([1 - probability, probability]))
            assert_independent(changed[:, layer].astype(int), changed[:, layer - 1].astype(int))
        else:
            assert changed[:, layer].all()
        others = mask[layer].copy()
        others[before[0, layer]] = False
        counts = np.bincount(after[changed[:, layer], layer], minlength=32)
        assert counts[~others].sum() == 0
        if operations > 2:
            assert_counts(counts[others], np.full(operations - 1, 1 / (operations - 1)))


def test_draws_of_one_index_for_different_uses_are_independent() -> None:
    mask = np.ones((5, 4), dtype=bool)
    proposed = paths.propose(mask, 5, 6, 0, N)
    mutated = paths.mutate(np.zeros_like(proposed), mask, 0.9, 5, 6, 0)
    parents = np.zeros((N, 2, 5), dtype=np.uint8)
    parents[:, 1] = 1
    swapped = paths.crossover(parents, 1.0, 5, 6, 0)[::2]
    for layer in range(5):
        assert_independent(proposed[:, layer], mutated[:, layer])
        assert_independent(proposed[:, layer], swapped[:, layer])
        assert_independent(mutated[:, layer], swapped[:, layer])
        assert_independent(mutated[:-1, layer], mutated[1:, layer])


def test_other_integer_types_and_strides_are_taken() -> None:
    mask = np.ones((2, 8, 4), dtype=bool)[0, ::2]
    wide = np.arange(320).reshape(10, 2, 16) % 4
    np.testing.assert_array_equal(
        paths.crossover(wide[::2, :, ::4], 0.5, 1, 2, 3),
        paths.crossover(wide[::2, :, ::4].astype(np.uint8), 0.5, 1, 2, 3),
    )
    batch = wide[:, 0, ::4]
    np.testing.assert_array_equal(
        paths.mutate(batch, mask, 0.5, 1, 2, 3), paths.mutate(batch.astype(np.uint8).copy(), mask.copy(), 0.5, 1, 2, 3)
    )


def test_refused() -> None:
    parents, batch, mask = np.zeros((3, 2, 4), np.uint8), np.zeros((3, 4), np.uint8), np.ones((4, 5), bool)
    for bad, word in [
        (batch, r"parents must be \[m, 2, L\], got shape \[3, 4\]"),
        (np.zeros((2, 3, 4), np.uint8), r"parents must be \[m, 2, L\], got shape \[2, 3, 4\]"),
        (parents.astype(float), "must be integers"),
        (np.zeros((1, 2, 26), np.uint8), "1 to 25 layers, got 26"),
        (np.zeros((1, 2, 0), np.uint8), "1 to 25 layers, got 0"),
    ]:
        with pytest.raises(InputError, match=word):
            paths.crossover(bad, 0.5, 0, 0, 0)
    last = batch.copy()
    last[2, 3] = 5
    for bad, allowed, word in [
        (last, mask, "path 2 has operation 5 at layer 3, which is not allowed"),
        (np.full((1, 4), 200, np.uint8), mask, "path 0 has operation 200 at layer 0, which is not allowed"),
        (batch, mask & (np.arange(5) > 0), "path 0 has operation 0 at layer 0, which is not allowed"),
        (batch, mask[:3], "allowed has 3 layers, the paths have 4"),
        (batch, mask.astype(int), "allowed must be bool"),
        (batch, np.ones((4, 33), bool), "1 to 32 operations, got 33"),
        (np.zeros((1, 26), np.uint8), np.ones((26, 5), bool), "1 to 25 layers, got 26"),
    ]:
        with pytest.raises(InputError, match=word):
            paths.mutate(bad, allowed, 0.5, 0, 0, 0)
    for probability in (-0.1, 1.5, float("nan"), "much", None):
        with pytest.raises(InputError, match="crossover: probability must be 0 to 1"):
            paths.crossover(parents, probability, 0, 0, 0)
        with pytest.raises(InputError, match="mutate: probability must be 0 to 1"):
            paths.mutate(batch, mask, probability, 0, 0, 0)
    for counter, name in [
        ((-1, 0, 0), "seed"),
        ((0.5, 0, 0), "seed"),
        ((0, 2**32, 0), "stream"),
        ((0, 0, 2**64), "start"),
    ]:
        with pytest.raises(InputError, match=f"crossover: {name} must be 0 to 2"):
            paths.crossover(parents, 0.5, *counter)
        with pytest.raises(InputError, match=f"mutate: {name} must be 0 to 2"):
            paths.mutate(batch, mask, 0.5, *counter)
