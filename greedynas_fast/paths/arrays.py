"""Checks of what goes to the core as addresses and sizes."""

from __future__ import annotations

import math
import operator

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import InputError

MAX_LAYERS = _core.MAX_LAYERS
MAX_OPERATIONS = _core.MAX_OPERATIONS

Paths = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


def as_operations(values: npt.ArrayLike, name: str, form: str = "[n, L]", ndim: int = 2) -> Paths:
    """Operation indices as a contiguous uint8 array of `ndim` dimensions.

    Raises:
        InputError: another number of dimensions, no integers, or integers of another type outside 0..31.
    """
    array = np.asarray(values)
    if array.ndim != ndim:
        raise InputError(f"{name} must be {form}, got shape {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be integers, got {array.dtype}")
    if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() >= MAX_OPERATIONS):
        raise InputError(f"{name} must be 0 to {MAX_OPERATIONS - 1}, got {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=np.uint8)


def as_keys(keys: npt.ArrayLike, name: str) -> Keys:
    """Keys as a contiguous uint64 array [n, 2].

    Raises:
        InputError: wrong shape or dtype.
    """
    array = np.asarray(keys)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype != np.uint64:
        raise InputError(f"{name}: keys must be uint64 [n, 2], got {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=np.uint64)


def as_mask(allowed: npt.ArrayLike, name: str) -> Mask:
    """An operation mask as a contiguous bool array [L, N].

    Raises:
        InputError: wrong shape or dtype.
    """
    mask = np.asarray(allowed)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"{name}: allowed must be bool [L, N], got {mask.dtype} {list(mask.shape)}")
    return np.ascontiguousarray(mask)


def check_bits(function: str, name: str, value: int, bits: int) -> int:
    """`value` as an int.

    Raises:
        InputError: it is not a whole number from 0 to 2**bits - 1.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**bits:
        raise InputError(f"{function}: {name} must be 0 to 2**{bits} - 1, got {value}")
    return number


def check_probability(function: str, value: float) -> float:
    """`value` as a float.

    Raises:
        InputError: it is not a number from 0 to 1.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        raise InputError(f"{function}: probability must be 0 to 1, got {value}")
    return number
