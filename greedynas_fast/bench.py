"""Measurements of the compiled parts beside their peers, in one run, checked before a figure is given."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast import paths
from greedynas_fast.dataclass_io import nearest
from greedynas_fast.errors import InputError

Paths = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]

LAYERS, OPERATIONS = 21, 21  # those of mb-se-mix-shuffle
BITS = 5


def measure(names: Sequence[str] = (), quick: bool = False) -> dict[str, Any]:
    """Run measurements.

    Args:
        names: of `MEASUREMENTS`; none runs all.
        quick: fewer sizes and repetitions.

    Returns:
        `rows` (name, provider, threads, paths, repeats, paths_per_s as p20/p50/p80, ratio_to_best_peer) and `machine`.

    Raises:
        InputError: an unknown measurement.
        RuntimeError: a fast version and its peer disagree; then no figure is given.
    """
    for name in names:
        if name not in MEASUREMENTS:
            near = nearest(name, tuple(MEASUREMENTS))
            known = f"Did you mean {near!r}?" if near else f"Known: {', '.join(MEASUREMENTS)}."
            raise InputError(f"unknown measurement {name!r}. {known}")
    rows = [row for name in names or MEASUREMENTS for row in MEASUREMENTS[name](quick)]
    machine = {"platform": platform.platform(), "python": platform.python_version(), "numpy": np.__version__}
    return {"rows": rows, "machine": machine}


def codec(quick: bool) -> list[dict[str, Any]]:
    """Packing paths into 128-bit keys and back: the compiled core against numpy."""
    rows = []
    for count in (100_000,) if quick else (100_000, 1_000_000):
        batch = np.random.default_rng(count).integers(0, OPERATIONS, (count, LAYERS), dtype=np.uint8)
        keys = paths.pack(batch)
        if not (np.array_equal(keys, numpy_pack(batch)) and np.array_equal(numpy_unpack(keys, LAYERS), batch)):
            raise RuntimeError("codec: the core and numpy disagree, so there is no figure to give")
        if not np.array_equal(paths.unpack(keys, LAYERS), batch):
            raise RuntimeError("codec: unpacking does not undo packing, so there is no figure to give")
        repeats = 5 if quick else 15
        packs = {"core": partial(paths.pack, batch), "numpy": partial(numpy_pack, batch)}
        unpacks = {"core": partial(paths.unpack, keys, LAYERS), "numpy": partial(numpy_unpack, keys, LAYERS)}
        rows += _compare("codec.pack", packs, count, repeats)
        rows += _compare("codec.unpack", unpacks, count, repeats)
    return rows


MEASUREMENTS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {"codec": codec}


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
    name: str, providers: Mapping[str, Callable[[], object]], count: int, repeats: int
) -> list[dict[str, Any]]:
    """Time the providers in turn (A B A B ...), so that a change of the machine's speed meets all of them."""
    rates: dict[str, list[float]] = {provider: [] for provider in providers}
    for function in providers.values():
        function()
    for _ in range(repeats):
        for provider, function in providers.items():
            start = time.perf_counter()
            function()
            rates[provider].append(count / (time.perf_counter() - start))
    middle = {provider: float(np.median(values)) for provider, values in rates.items()}
    rows = []
    for provider, values in rates.items():
        best_peer = max(rate for other, rate in middle.items() if other != provider)
        low, mid, high = np.percentile(values, [20, 50, 80]).tolist()
        rows.append(
            {
                "name": name,
                "provider": provider,
                "threads": 1,
                "paths": count,
                "repeats": repeats,
                "paths_per_s": {"p20": low, "p50": mid, "p80": high},
                "ratio_to_best_peer": mid / best_peer,
            }
        )
    return rows
