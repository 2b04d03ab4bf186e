"""Counter-based randomness: every draw is a pure function of (seed, stream, step)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from greedynas_fast.errors import InputError


class Stream(IntEnum):
    """Names of the independent random sequences of this room."""

    WEIGHTS = 1
    HOLDOUT = 2
    BATCH = 3


def generator(seed: int, stream: Stream, step: int = 0) -> np.random.Generator:
    """A generator whose whole sequence is fixed by its three arguments.

    Args:
        seed: 0 <= seed < 2**64.
        stream: which use it serves.
        step: a counter inside the stream, for instance the training step.

    Returns:
        A fresh Philox generator; no global state is read or written.

    Raises:
        InputError: for a seed out of range.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed must be at least 0 and below 2**64, got {seed}")
    # The low counter words count the draws, so that no two steps can overlap.
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, step, 0]))
