"""Packing paths into keys and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import InputError, call
from greedynas_fast.paths.arrays import MAX_LAYERS, Keys, Paths, as_keys, as_operations


def pack(paths: npt.ArrayLike) -> Keys:
    """Pack paths into keys.

    Args:
        paths: operation indices [n, L], integers 0..31, L 1..25; not necessarily contiguous or uint8.

    Returns:
        Keys, uint64 [n, 2].

    Raises:
        InputError: wrong shape, dtype, or an index that does not fit in 5 bits.
    """
    array = as_operations(paths, "pack: paths")
    n, layers = array.shape
    keys = np.empty((n, 2), dtype=np.uint64)
    call(_core.pack, array.ctypes.data, n, layers, keys.ctypes.data)
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
    array = as_keys(keys, "unpack")
    if not 1 <= num_layers <= MAX_LAYERS:
        raise InputError(f"unpack: num_layers must be 1 to {MAX_LAYERS}, got {num_layers}")
    paths = np.empty((len(array), num_layers), dtype=np.uint8)
    call(_core.unpack, array.ctypes.data, len(array), num_layers, paths.ctypes.data)
    return paths
