"""`bench codec`: packing paths into 128-bit keys, and unpacking, against numpy."""

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

LAYERS, OPERATIONS = 21, 21  # those of mb-se-mix-shuffle
BITS = 5
CORE = "core"
_THREADS = "GREEDYNAS_NUM_THREADS"  # the core reads it at every call


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `codec`: `codec.pack` and `codec.unpack` for one thread and for all.

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
    return rows


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


def _compare(
    name: str,
    providers: Mapping[str, Callable[[], Any]],
    expected: Paths | Keys,
    threads: int,
    count: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Check that all give `expected`, then time them in turn."""
    for provider, function in providers.items():
        if not np.array_equal(function(), expected):
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
