"""Variation of paths under an operation mask, as arrays."""

from __future__ import annotations

import numpy as np

from greedynas_fast.sampling.protocol import Mask, Paths


class UniformCrossover:
    """Two children from two parents: each layer's operation comes from either, the other child gets the other one."""

    def __init__(self, probability: float) -> None:
        """With 1 - `probability` the children are copies of the parents."""
        self._probability = probability

    def __call__(self, parents: Paths, random: np.random.Generator) -> Paths:
        """Cross pairs.

        Args:
            parents: uint8 [m, 2, L].
            random: the source of randomness.

        Returns:
            Children, uint8 [2 m, L].
        """
        pairs, _, layers = parents.shape
        swap = random.random((pairs, layers)) < 0.5
        swap &= random.random((pairs, 1)) < self._probability
        children = np.where(swap[:, None], parents[:, ::-1], parents)
        return children.reshape(2 * pairs, layers)


class Mutation:
    """Changes the operation of each layer, independently, to another allowed one."""

    def __init__(self, allowed: Mask, probability: float) -> None:
        """Mutate each layer with `probability`; a layer with a single allowed operation never changes."""
        self._probability = probability
        self._counts = allowed.sum(axis=1)  # [L]
        self._ops = np.argsort(~allowed, axis=1, kind="stable").astype(np.uint8)  # [L, max_ops], allowed ones first
        self._places = np.argsort(self._ops, axis=1)  # [L, max_ops], where an operation stands in _ops

    def __call__(self, paths: Paths, random: np.random.Generator) -> Paths:
        """Mutated copies of `paths`, uint8 [n, L]."""
        layers = np.arange(paths.shape[1])
        change = random.random(paths.shape) < self._probability
        # a step of 1 .. count - 1 round the ring of allowed operations reaches each other one with equal probability
        step = 1 + (random.random(paths.shape) * (self._counts - 1)).astype(np.intp)
        place = (self._places[layers, paths] + step) % self._counts
        return np.where(change & (self._counts > 1), self._ops[layers, place], paths)
