"""Paths as this room reads them: a tuple of operation indices, checked cheaply at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from greedynas_fast.errors import InputError

Path: TypeAlias = Sequence[int] | NDArray[np.integer] | torch.Tensor
"""One operation index a layer: a uint8 array [L], an integer tensor [L], or any sequence of L integers."""


def choices(path: Path, num_ops: Sequence[int]) -> tuple[int, ...]:
    """The operation index of every layer.

    Args:
        path: [L] integers.
        num_ops: operations of each layer, length L.

    Returns:
        L plain integers, each in `0 .. num_ops[layer] - 1`.

    Raises:
        InputError: a wrong length, or an operation that a layer does not have (also one below zero or not whole).
    """
    plain = path.tolist() if isinstance(path, (np.ndarray, torch.Tensor)) else path
    if not isinstance(plain, Sequence) or isinstance(plain, str) or len(plain) != len(num_ops):
        came = len(plain) if isinstance(plain, Sequence) else type(path).__name__
        raise InputError(f"path: expected {len(num_ops)} operation indices, one a layer, got {came}")
    for layer, (op, count) in enumerate(zip(plain, num_ops, strict=True)):
        if isinstance(op, bool) or not isinstance(op, (int, np.integer)):
            raise InputError(f"path: expected a whole number for layer {layer}, got {op!r}")
        if not 0 <= op < count:
            raise InputError(f"path: layer {layer} has operations 0 to {count - 1}, got {op}")
    return tuple(map(int, plain))
