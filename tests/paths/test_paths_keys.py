"""Sorting, unique keys and sets of keys against numpy and Python."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greedynas_fast import paths
from greedynas_fast.errors import InputError

# few distinct words, so that keys meet again; 0 and 2**64 - 1 stand for free slots in some tables
WORDS = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1, 2**64 - 2, 12345 << 24])
BATCHES = hnp.arrays(np.uint64, st.tuples(st.integers(0, 40), st.just(2)), elements=WORDS)


def numbers(keys: np.ndarray) -> list[int]:
    return [(int(high) << 64) | int(low) for high, low in keys]


def random_keys(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    if kind == "paths":
        return paths.pack(rng.integers(0, 13, (n, 21), dtype=np.uint8))
    if kind == "few":
        return paths.pack(rng.integers(0, 3, (n, 6), dtype=np.uint8))
    return rng.integers(0, 2**64, (n, 2), dtype=np.uint64)


@given(BATCHES)
def test_sorted_like_python_numbers(keys: np.ndarray) -> None:
    before = keys.copy()
    assert numbers(paths.sort_keys(keys)) == sorted(numbers(keys))
    np.testing.assert_array_equal(keys, before)


@given(BATCHES)
def test_unique_like_numpy(keys: np.ndarray) -> None:
    expected, first, inverse = np.unique(np.array(numbers(keys), dtype=object), return_index=True, return_inverse=True)
    unique = paths.unique_keys(keys)
    assert numbers(unique.keys) == list(expected)
    np.testing.assert_array_equal(unique.first, first)
    np.testing.assert_array_equal(unique.inverse, inverse)


@pytest.mark.parametrize("n", [1000, 200_000])
@pytest.mark.parametrize("kind", ["paths", "few", "any"])
def test_many_keys(kind: str, n: int) -> None:
    keys = random_keys(kind, n)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    np.testing.assert_array_equal(paths.sort_keys(keys), keys[order])
    np.testing.assert_array_equal(paths.sort_keys(keys[::-1]), keys[order])
    unique = paths.unique_keys(keys)
    expected, first = np.unique(keys, axis=0, return_index=True)  # lexicographic too
    np.testing.assert_array_equal(unique.keys, expected)
    np.testing.assert_array_equal(unique.first, first)
    np.testing.assert_array_equal(unique.keys[unique.inverse], keys)
    known = paths.KeySet()
    fresh = known.add(keys)
    np.testing.assert_array_equal(np.flatnonzero(fresh), np.sort(first))
    np.testing.assert_array_equal(known.keys(), expected)
    assert known.contains(keys).all()
    assert not known.contains(keys ^ np.uint64(1 << 63 | 1)).any() or kind == "any"


class AgainstPythonSets(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ours, self.expected = paths.KeySet(), set[int]()

    @rule(keys=BATCHES)
    def add(self, keys: np.ndarray) -> None:
        fresh = []
        for number in numbers(keys):
            fresh.append(number not in self.expected)
            self.expected.add(number)
        assert self.ours.add(keys).tolist() == fresh

    @rule(keys=BATCHES)
    def contains(self, keys: np.ndarray) -> None:
        assert self.ours.contains(keys).tolist() == [number in self.expected for number in numbers(keys)]

    @rule(seed=st.integers(0, 100), n=st.integers(1, 400))
    def grow(self, seed: int, n: int) -> None:
        self.add(np.random.default_rng(seed).integers(0, 2**64, (n, 2), dtype=np.uint64))

    @rule(through=st.sampled_from([copy.deepcopy, copy.copy, lambda known: pickle.loads(pickle.dumps(known))]))
    def copied(self, through: Callable[[paths.KeySet], paths.KeySet]) -> None:
        other = through(self.ours)
        other.add(np.full((1, 2), 77, dtype=np.uint64))
        assert len(other) == len(self.expected | {77 << 64 | 77})
        self.same()  # the original is left alone

    @invariant()
    def same(self) -> None:
        assert len(self.ours) == len(self.expected)
        assert numbers(self.ours.keys()) == sorted(self.expected)


AgainstPythonSets.TestCase.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
TestAgainstPythonSets = AgainstPythonSets.TestCase


def test_the_state_is_a_plain_array() -> None:
    known = paths.KeySet()
    known.add(random_keys("paths", 10))
    state = known.__getstate__()
    assert list(state) == ["keys"]
    assert type(state["keys"]) is np.ndarray
    assert (state["keys"].dtype, state["keys"].shape) == (np.uint64, (10, 2))


def test_threads_may_share_a_set() -> None:
    keys = random_keys("any", 30_000)
    known, fresh = paths.KeySet(), [0] * 4

    def work(number: int) -> None:
        for part in np.array_split(np.roll(keys, 7000 * number, axis=0), 20):
            fresh[number] += int(known.add(part).sum())
            known.contains(part)
            assert len(known.keys()) <= len(keys)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(fresh) == len(known) == len(keys)
    np.testing.assert_array_equal(known.keys(), paths.sort_keys(keys))


@pytest.mark.parametrize(
    "bad",
    [np.zeros(2, np.uint64), np.zeros((2, 3), np.uint64), np.zeros((2, 2), np.int64), np.zeros((2, 2)), [[1, 2]]],
)
def test_bad_keys_are_refused(bad: object) -> None:
    known = paths.KeySet()
    for name, function in {
        "sort_keys": paths.sort_keys,
        "unique_keys": paths.unique_keys,
        "KeySet.add": known.add,
        "KeySet.contains": known.contains,
    }.items():
        with pytest.raises(InputError, match=rf"{name}: keys must be uint64 \[n, 2\], got "):
            function(bad)
    assert len(known) == 0
