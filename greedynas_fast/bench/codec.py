"""`bench codec`: packing paths into 128-bit keys, unpacking, and sets of keys, against numpy and Python's set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast import paths

from .timing import Budget, alternate, core_isa, fastest, make_row, rate_values, thread_counts

Paths = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]
Unique = tuple[Keys, npt.NDArray[np.int64], npt.NDArray[np.int64]]  # distinct keys, where first, which of them

LAYERS, OPERATIONS = 21, 21  # those of mb-se-mix-shuffle
BITS = 5
CORE = "core"
_THREADS = "GREEDYNAS_NUM_THREADS"  # the core reads it at every call


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `codec`: `codec.pack` and `codec.unpack` for one thread and for all, `codec.unique` and `codec.add`.

    Raises:
        RuntimeError: the core and a peer disagree.
    """
    rows = []
    for count in budget.codec_paths:
        batch = np.random.default_rng(count).integers(0, OPERATIONS, (count, LAYERS), dtype=np.uint8)
        keys = numpy_pack(batch)
        packs = {CORE: partial(paths.pack, batch), "numpy": partial(numpy_pack, batch)}
        unpacks = {
            CORE: partial(paths.unpack, keys, LAYERS),
            "numpy": partial(numpy_unpack, keys, LAYERS),
        }
        for threads in thread_counts():
            with core_threads(threads):
                rows += _compare("codec.pack", packs, keys, threads, count, budget.repeats)
                rows += _compare("codec.unpack", unpacks, batch, threads, count, budget.repeats)
        rows += _sets(count, budget.repeats)
    return rows


def _sets(count: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the operations on keys of which every second is a repetition."""
    rng = np.random.default_rng(count + 1)
    distinct = numpy_pack(rng.integers(0, OPERATIONS, (count // 2, LAYERS), dtype=np.uint8))
    keys = np.concatenate([distinct, distinct])[rng.permutation(2 * len(distinct))]
    uniques: dict[str, Callable[[], Any]] = {
        CORE: partial(paths.unique_keys, keys),
        "numpy.unique": partial(numpy_unique, keys),
        "numpy.lexsort": partial(lexsort_unique, keys),
    }
    adds: dict[str, Callable[[], Any]] = {
        CORE: lambda: paths.KeySet().add(keys),
        "Python set": partial(python_add, keys),
    }
    fresh = np.zeros(len(keys), dtype=np.bool_)
    fresh[numpy_unique(keys)[1]] = True
    with core_threads(1):
        rows = _compare("codec.unique", uniques, numpy_unique(keys), 1, len(keys), repeats)
        return rows + _compare("codec.add", adds, fresh, 1, len(keys), repeats)


@contextmanager
def core_threads(count: int) -> Iterator[None]:
    """Hold the core to `count` threads."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def numpy_pack(batch: Paths) -> Keys:
    """The peer of `paths.pack`: uint8 [n, L] -> uint64 [n, 2], layer 0 in the most significant bits."""
    keys = np.zeros((len(batch), 2), dtype=np.uint64)
    for layer in range(batch.shape[1]):
        values = batch[:, layer].astype(np.uint64)
        shift = 128 - BITS * (layer + 1)
        if shift >= 64:
            keys[:, 0] |= values << np.uint64(shift - 64)
        else:
            keys[:, 1] |= values << np.uint64(shift)
            if shift + BITS > 64:  # straddles the two words
                keys[:, 0] |= values >> np.uint64(64 - shift)
    return keys


def numpy_unpack(keys: Keys, num_layers: int) -> Paths:
    """The peer of `paths.unpack`: uint64 [n, 2] -> uint8 [n, L]."""
    batch = np.empty((len(keys), num_layers), dtype=np.uint8)
    for layer in range(num_layers):
        shift = 128 - BITS * (layer + 1)
        if shift >= 64:
            values = keys[:, 0] >> np.uint64(shift - 64)
        else:
            values = keys[:, 1] >> np.uint64(shift)
            if shift + BITS > 64:
                values |= keys[:, 0] << np.uint64(64 - shift)
        batch[:, layer] = values & np.uint64(2**BITS - 1)
    return batch


def numpy_unique(keys: Keys) -> Unique:
    """The peer of `paths.unique_keys`: distinct keys ascending, where each is first, which of them each key is."""
    unique, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return unique, first, inverse.reshape(-1)  # numpy 2.0 gives it another shape


def lexsort_unique(keys: Keys) -> Unique:
    """The same by a stable sort of the two words, which numpy does faster."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ascending = keys[order]
    new = np.ones(len(keys), dtype=np.bool_)
    new[1:] = (ascending[1:] != ascending[:-1]).any(axis=1)
    inverse = np.empty(len(keys), dtype=np.int64)
    inverse[order] = np.cumsum(new) - 1
    return ascending[new], order[new], inverse


def python_add(keys: Keys) -> npt.NDArray[np.bool_]:
    """The peer of `KeySet.add` on an empty set: True where a key comes for the first time."""
    seen: set[tuple[int, int]] = set()
    fresh = np.empty(len(keys), dtype=np.bool_)
    for index, key in enumerate(zip(keys[:, 0].tolist(), keys[:, 1].tolist(), strict=True)):
        fresh[index] = key not in seen
        seen.add(key)
    return fresh


def _compare(
    name: str,
    providers: Mapping[str, Callable[[], Any]],
    expected: Any,
    threads: int,
    count: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Check that all give `expected`, an array or a tuple of arrays, then time them in turn."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for provider, function in providers.items():
        result = function()
        arrays = result if isinstance(result, tuple) else (result,)
        if not all(np.array_equal(got, want) for got, want in zip(arrays, wanted, strict=True)):
            raise RuntimeError(f"{name}: {provider} and numpy disagree, so there is no figure to give")
    rates = alternate({provider: _run(function, count) for provider, function in providers.items()}, repeats)
    best = fastest(rates, [provider for provider in providers if provider != CORE])
    return [
        make_row(
            name,
            provider,
            core_isa() if provider == CORE else "-",
            threads if provider == CORE else 1,
            paths=count,
            **rate_values(rates, provider, best),
        )
        for provider in providers
    ]


def _run(function: Callable[[], Any], count: int) -> Callable[[], int]:
    def run() -> int:
        function()
        return count

    return run
