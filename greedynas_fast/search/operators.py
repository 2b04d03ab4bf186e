"""Variation of paths under an operation mask, numbered so that each child is a pure function of its parents."""

from __future__ import annotations

from greedynas_fast import paths
from greedynas_fast.sampling.protocol import Mask, Paths
from greedynas_fast.search.config import SearchConfig

VARIATION_STREAM = 0x5EA00005  # far from the small numbers that training uses with the same seed


class Variation:
    """Crossover and mutation of pairs; pair `i` of generation `g` has the same draws in whatever batch it comes."""

    def __init__(self, allowed: Mask, config: SearchConfig, seed: int) -> None:
        """Vary paths under the mask, bool [L, max_ops], with the probabilities of the configuration."""
        self._allowed, self._config, self._seed = allowed, config, seed

    def __call__(self, parents: Paths, generation: int, start: int) -> Paths:
        """Cross pairs, then mutate the children.

        Args:
            parents: uint8 [m, 2, L], under the mask.
            generation: 0 .. 2**31 - 1.
            start: number of the first pair within the generation; pairs are numbered up to 2**32 - 1.

        Returns:
            Children, uint8 [2 m, L].
        """
        first = (generation << 32) + start
        config, seed = self._config, self._seed
        children = paths.crossover(parents, config.crossover_probability, seed, VARIATION_STREAM, first)
        return paths.mutate(children, self._allowed, config.mutation_probability, seed, VARIATION_STREAM, 2 * first)
