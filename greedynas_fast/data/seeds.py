"""Random generators as pure functions of (seed, stream, counters)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a generator is for; different streams of one seed are independent."""

    TEST_PART = 1
    LIMIT = 2
    VALIDATION_PART = 3
    SUBSET = 4
    SHUFFLE = 5
    AUGMENT_BATCH = 6
    AUGMENT_SAMPLE = 7


def seed64(seed: int, stream: Stream, *counters: int) -> int:
    """A 64-bit seed; `seed` and the counters are taken modulo 2**64."""
    return int(_sequence(seed, stream, *counters).generate_state(1, np.uint64)[0])


def numpy_generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A fresh numpy generator."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, stream, *counters)))


def torch_generator(seed: int, stream: Stream, *counters: int) -> torch.Generator:
    """A fresh CPU torch generator."""
    return torch.Generator().manual_seed(seed64(seed, stream, *counters))


def _sequence(seed: int, *keys: int) -> np.random.SeedSequence:
    # Two words a key: numpy takes as many words as a number needs, and then (2**32,) and (0, 1) would be the same.
    words = [word for key in (seed, *keys) for word in (key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF)]
    return np.random.SeedSequence(words)
