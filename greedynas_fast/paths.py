"""Paths as packed keys, and uniform proposals that are a pure function of their index.

A path is one operation index a layer. Batches are uint8 arrays `[n, L]`; a key is 128 bits, 5 bits an operation, as two
uint64 words `[n, 2]` (high, low), so that keys order like the paths. The arithmetic is in the compiled core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import InputError

MAX_LAYERS = _core.MAX_LAYERS
MAX_OPERATIONS = _core.MAX_OPERATIONS

Paths = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]


def pack(paths: npt.ArrayLike) -> Keys:
    """Pack paths into keys.

    Args:
        paths: operation indices [n, L], integers 0..31, L 1..25; not necessarily contiguous or uint8.

    Returns:
        Keys, uint64 [n, 2].

    Raises:
        InputError: wrong shape, dtype, or an index that does not fit in 5 bits.
    """
    array = _as_uint8(paths, "pack: paths")
    n, layers = array.shape
    keys = np.empty((n, 2), dtype=np.uint64)
    _call(_core.pack, array.ctypes.data, n, layers, keys.ctypes.data)
    return keys


def unpack(keys: npt.ArrayLike, num_layers: int) -> Paths:
    """The inverse of `pack`.

    Args:
        keys: uint64 [n, 2].
        num_layers: layers L of the paths, 1..25.

    Returns:
        Paths, uint8 [n, L].

    Raises:
        InputError: wrong shape or dtype, or keys of longer paths.
    """
    array = np.asarray(keys)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype != np.uint64:
        raise InputError(f"unpack: keys must be uint64 [n, 2], got {array.dtype} {list(array.shape)}")
    array = np.ascontiguousarray(array)
    if not 1 <= num_layers <= MAX_LAYERS:
        raise InputError(f"unpack: num_layers must be 1 to {MAX_LAYERS}, got {num_layers}")
    paths = np.empty((len(array), num_layers), dtype=np.uint8)
    _call(_core.unpack, array.ctypes.data, len(array), num_layers, paths.ctypes.data)
    return paths


def propose(allowed: npt.ArrayLike, seed: int, stream: int, start: int, count: int) -> Paths:
    """Draw paths uniformly over the allowed operations of each layer.

    Row `j` is proposal `start + j`, a pure function of (seed, stream, allowed, start + j): it does not depend on the
    batch in which it is drawn (Philox4x32-10, no modulo bias).

    Args:
        allowed: bool [L, N], True where an operation may be drawn; every layer needs one.
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1; draws for different purposes use different streams.
        start: index of the first proposal, 0 .. 2**64 - 1.
        count: number of proposals.

    Returns:
        Paths, uint8 [count, L].

    Raises:
        InputError: an empty layer, a wrong shape, or a number out of range.
    """
    mask = _checked_mask(allowed, seed, stream)
    _check_range("start", start, 64)
    _check_range("count", count, 40)
    layers, operations = mask.shape
    paths = np.empty((count, layers), dtype=np.uint8)
    _call(
        _core.propose,
        mask.ctypes.data,
        layers,
        operations,
        int(seed),
        int(stream),
        int(start),
        count,
        paths.ctypes.data,
    )
    return paths


def propose_at(allowed: npt.ArrayLike, seed: int, stream: int, numbers: npt.NDArray[np.uint64]) -> Paths:
    """Proposals of any numbers, as `propose` draws them.

    Args:
        allowed: as for `propose`.
        seed: as for `propose`.
        stream: as for `propose`.
        numbers: uint64 [n].

    Returns:
        Paths, uint8 [n, L]; row `j` is proposal `numbers[j]`.

    Raises:
        InputError: as for `propose`.
    """
    mask = _checked_mask(allowed, seed, stream)
    array = np.ascontiguousarray(numbers, dtype=np.uint64)
    layers, operations = mask.shape
    paths = np.empty((len(array), layers), dtype=np.uint8)
    _call(
        _core.propose_at,
        mask.ctypes.data,
        layers,
        operations,
        int(seed),
        int(stream),
        array.ctypes.data,
        len(array),
        paths.ctypes.data,
    )
    return paths


def _checked_mask(allowed: npt.ArrayLike, seed: int, stream: int) -> npt.NDArray[np.bool_]:
    mask = np.asarray(allowed)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"propose: allowed must be bool [L, N], got {mask.dtype} {list(mask.shape)}")
    _check_range("seed", seed, 64)
    _check_range("stream", stream, 32)
    return np.ascontiguousarray(mask)


def _check_range(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 2**bits:
        raise InputError(f"propose: {name} must be 0 to 2**{bits} - 1, got {value}")


def _as_uint8(paths: npt.ArrayLike, name: str) -> Paths:
    array = np.asarray(paths)
    if array.ndim != 2:
        raise InputError(f"{name} must be [n, L], got shape {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be integers, got {array.dtype}")
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() >= MAX_OPERATIONS):
        raise InputError(f"{name} must be 0 to {MAX_OPERATIONS - 1}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _call(function: Any, *arguments: int) -> None:
    try:
        function(*arguments)
    except ValueError as error:  # std::invalid_argument of the core
        raise InputError(str(error)) from None
