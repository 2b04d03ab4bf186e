"""Sorting keys, finding equal ones, and sets of keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.paths.arrays import Keys, as_keys


class UniqueKeys(NamedTuple):
    """The distinct keys of a batch.

    Attributes:
        keys: uint64 [u, 2], ascending.
        first: int64 [u], the index in the batch of the first occurrence of each.
        inverse: int64 [n], the place in `keys` of each key of the batch.
    """

    keys: Keys
    first: npt.NDArray[np.int64]
    inverse: npt.NDArray[np.int64]


def sort_keys(keys: npt.ArrayLike) -> Keys:
    """Keys in ascending order, as 128-bit numbers, which is the lexicographic order of their paths.

    Args:
        keys: uint64 [n, 2].

    Returns:
        A sorted copy, uint64 [n, 2].

    Raises:
        InputError: wrong shape or dtype.
    """
    result = as_keys(keys, "sort_keys").copy()
    _core.sort_keys(result.ctypes.data, len(result))
    return result


def unique_keys(keys: npt.ArrayLike) -> UniqueKeys:
    """The distinct keys of a batch, and where they are.

    Args:
        keys: uint64 [n, 2].

    Returns:
        `UniqueKeys`; `result.keys[result.inverse]` is the batch, and `batch[result.first]` is `result.keys`.

    Raises:
        InputError: wrong shape or dtype.
    """
    array = as_keys(keys, "unique_keys")
    unique = np.empty_like(array)
    first, inverse = (np.empty(len(array), dtype=np.int64) for _ in range(2))
    count = _core.unique_keys(array.ctypes.data, len(array), unique.ctypes.data, first.ctypes.data, inverse.ctypes.data)
    return UniqueKeys(unique[:count].copy(), first[:count].copy(), inverse)


class KeySet:
    """A set of keys. Threads may share one: each call is one step to the others.

    It can be copied and pickled; its state is the array of its keys.
    """

    def __init__(self) -> None:
        """Make an empty set."""
        self._set = _core.KeySet()

    def add(self, keys: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Add keys.

        Args:
            keys: uint64 [n, 2].

        Returns:
            bool [n], True where the key was neither in the set nor earlier in this batch.

        Raises:
            InputError: wrong shape or dtype; nothing is added.
        """
        array = as_keys(keys, "KeySet.add")
        fresh = np.empty(len(array), dtype=np.bool_)
        self._set.insert(array.ctypes.data, len(array), fresh.ctypes.data)
        return fresh

    def contains(self, keys: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Look keys up.

        Args:
            keys: uint64 [n, 2].

        Returns:
            bool [n], True where the key is in the set.

        Raises:
            InputError: wrong shape or dtype.
        """
        array = as_keys(keys, "KeySet.contains")
        found = np.empty(len(array), dtype=np.bool_)
        self._set.contains(array.ctypes.data, len(array), found.ctypes.data)
        return found

    def __len__(self) -> int:
        """Number of keys."""
        return self._set.size()

    def keys(self) -> Keys:
        """All keys, uint64 [n, 2], ascending."""
        while True:
            result = np.empty((len(self), 2), dtype=np.uint64)
            # more than fit only if another thread added some in between; then nothing was written
            if self._set.export_keys(result.ctypes.data, len(result)) == len(result):
                return result

    def __getstate__(self) -> dict[str, Any]:
        return {"keys": self.keys()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set = _core.KeySet()
        self.add(state["keys"])
