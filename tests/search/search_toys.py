"""A space of any shape, and separable scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from greedynas_fast.search import Search
from greedynas_fast.spaces import SearchSpace, operation
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, StemSpec

OPERATIONS = tuple(
    operation(name) for name in ("MB3_K3", "MB6_K3", "MB3_K5", "MB6_K5", "MB3_K7", "MB6_K7", "MB3_K3_SE", "ID")
)

Score = Callable[[np.ndarray], np.ndarray]


def toy_space(*num_ops: int) -> SearchSpace:
    """One layer for each number, with so many operations (at most 8; only the eighth is an identity)."""
    layers = tuple(LayerSpec(index, 0, 8, 8, 1, OPERATIONS[:n]) for index, n in enumerate(num_ops))
    return SearchSpace("toy", StemSpec(8), layers, HeadSpec(8, None), 3, 10, 8)


def separable(space: SearchSpace, seed: int = 0) -> Score:
    """Accuracy of a path: the mean of one fixed random number a layer and operation."""
    table = np.random.default_rng(seed).random((space.num_layers, space.max_ops))
    table[~space.allowed] = 0
    return lambda paths: table[np.arange(space.num_layers), paths].mean(axis=1)


def run(search: Search, score: Score) -> list[np.ndarray]:
    """Run to the end; the generations that were asked for."""
    generations = []
    while len(paths := search.ask()):
        generations.append(paths)
        search.tell(paths, score(paths))
    return generations
