"""Spaces of any shape and a scoring engine whose answers the tests know."""

from __future__ import annotations

import numpy as np

from greedynas_fast.spaces import SearchSpace, operation
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, StemSpec

OPERATIONS = tuple(operation(f"MB{expansion}_K{kernel}") for expansion in (3, 6) for kernel in (3, 5, 7))


def toy_space(*num_ops: int) -> SearchSpace:
    """One layer for each number, with so many operations (at most 6)."""
    layers = tuple(LayerSpec(index, 0, 8, 8, 1, OPERATIONS[:n]) for index, n in enumerate(num_ops))
    return SearchSpace("toy", StemSpec(8), layers, HeadSpec(8, None), 3, 10, 8)


class HashEngine:
    """Scores a path by mixing its digits: float32, repeatable, no structure; notes the sizes of its calls."""

    def __init__(self, levels: int = 1000) -> None:
        self.levels = levels
        self.calls: list[int] = []

    def log_prob_weak(self, paths: np.ndarray) -> np.ndarray:
        self.calls.append(len(paths))
        mixed = np.zeros(len(paths), dtype=np.uint64)
        for column in paths.T.astype(np.uint64):
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        return -((mixed % np.uint64(self.levels)).astype(np.float32) + 1) / self.levels
