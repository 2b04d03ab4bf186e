"""Packing and proposals against plain Python integers."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast import paths
from greedynas_fast.errors import InputError

batches = st.tuples(st.integers(0, 20), st.integers(1, paths.MAX_LAYERS)).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape, elements=st.integers(0, 31))
)


def key_of(path: np.ndarray) -> int:
    """The oracle: the path as one number in base 32, moved to the top of 128 bits."""
    number = 0
    for operation in path:
        number = number * 32 + int(operation)
    return number << (128 - 5 * len(path))


@given(batches)
def test_keys_are_base_32_numbers_and_come_back(batch: np.ndarray) -> None:
    keys = paths.pack(batch)
    assert [(int(high) << 64) | int(low) for high, low in keys] == [key_of(path) for path in batch]
    np.testing.assert_array_equal(paths.unpack(keys, batch.shape[1]), batch)


@given(batches)
def test_keys_order_like_paths(batch: np.ndarray) -> None:
    keys = paths.pack(batch)
    by_key = np.lexsort((keys[:, 1], keys[:, 0]))
    assert [tuple(batch[i]) for i in by_key] == sorted(map(tuple, batch))


def test_other_integer_types_and_strides_are_taken() -> None:
    wide = np.arange(40, dtype=np.int64).reshape(4, 10) % 32
    np.testing.assert_array_equal(paths.pack(wide[::2, ::3]), paths.pack(wide[::2, ::3].astype(np.uint8)))
    keys = paths.pack(wide)
    np.testing.assert_array_equal(paths.unpack(keys[::-1], 10), wide[::-1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros(3, np.uint8), "must be \\[n, L\\]"),
        (np.zeros((2, 3)), "must be integers"),
        (np.full((2, 3), 32, np.uint8), "path 0 has operation 32 at layer 0"),
        (np.full((2, 3), -1), "must be 0 to 31"),
        (np.full((2, 3), 256 + 1), "must be 0 to 31"),
        (np.zeros((1, 26), np.uint8), "1 to 25 layers, got 26"),
        (np.zeros((1, 0), np.uint8), "1 to 25 layers, got 0"),
    ],
)
def test_pack_refuses(bad: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paths.pack(bad)


def test_unpack_refuses() -> None:
    keys = paths.pack(np.ones((1, 5), np.uint8))
    with pytest.raises(InputError, match="holds more than 4 layers"):
        paths.unpack(keys, 4)
    with pytest.raises(InputError, match="uint64"):
        paths.unpack(keys.astype(np.int64), 5)
    with pytest.raises(InputError, match="num_layers must be 1 to 25, got 26"):
        paths.unpack(keys, 26)


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
