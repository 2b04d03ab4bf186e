"""Proposals: batch-size independence and uniformity."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast import paths
from greedynas_fast.errors import InputError


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(1, 25), st.integers(1, 32))),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63),
    st.integers(1, 30),
)
def test_a_proposal_depends_on_its_index_alone(mask: np.ndarray, seed: int, stream: int, start: int, cut: int) -> None:
    mask[:, 0] = True
    whole = paths.propose(mask, seed, stream, start, 31)
    parts = [paths.propose(mask, seed, stream, start, cut), paths.propose(mask, seed, stream, start + cut, 31 - cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert mask[np.arange(mask.shape[0]), whole].all()


@pytest.mark.parametrize("operations", [1, 2, 3, 13, 21, 32])
def test_proposals_are_uniform_over_the_mask(operations: int) -> None:
    rng = np.random.default_rng(operations)
    mask = np.zeros((6, 32), dtype=bool)
    for layer in range(6):
        mask[layer, rng.permutation(32)[:operations]] = True
    n = 40_000
    drawn = paths.propose(mask, 3, 1, 0, n)
    for layer in range(6):
        counts = np.bincount(drawn[:, layer], minlength=32)[mask[layer]]
        chi_square = float(((counts - n / operations) ** 2 / (n / operations)).sum())
        # Mean k-1, standard deviation sqrt(2(k-1)); fixed seeds, so this cannot flake.
        assert chi_square <= (operations - 1) + 4.5 * np.sqrt(2 * operations)


def test_propose_refuses() -> None:
    with pytest.raises(InputError, match="layer 1 has no allowed operation"):
        paths.propose(np.array([[True, True], [False, False]]), 0, 0, 0, 1)
    with pytest.raises(InputError, match="allowed must be bool"):
        paths.propose(np.ones((2, 2)), 0, 0, 0, 1)
    with pytest.raises(InputError, match="seed must be 0 to"):
        paths.propose(np.ones((2, 2), bool), -1, 0, 0, 1)
    with pytest.raises(InputError, match="at most 25 layers by 32 operations"):
        paths.propose(np.ones((26, 2), bool), 0, 0, 0, 1)
