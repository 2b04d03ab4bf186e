"""Counter-based random generators: what is drawn for one index depends on nothing but (seed, stream, index)."""

from __future__ import annotations

import numpy as np


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """A Philox generator for one index of one stream.

    Args:
        seed: 0 .. 2**64 - 1, the first key word.
        stream: 0 .. 2**32 - 1, the second key word.
        index: 0 .. 2**64 - 1, the highest counter word, so that 2**192 draws lie between two indices.

    Returns:
        A generator that shares no state with any other.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, 0, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
