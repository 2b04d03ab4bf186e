"""Random proposals: the baseline method, the first generation of the others, and what fills up a short one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from greedynas_fast.sampling import UniformSampler
from greedynas_fast.sampling.philox import generator
from greedynas_fast.sampling.protocol import Mask, Paths
from greedynas_fast.search.config import SearchConfig
from greedynas_fast.search.screen import Batch, Screen
from greedynas_fast.spaces import SearchSpace

MIN_ROUND = 512  # proposals cost little, a call of the filter has a fixed cost
ENUMERABLE = 100_000  # spaces up to this size are gone through one by one when chance finds nothing new
# far from the small numbers that training uses with the same seed
UNIFORM_STREAM, LIMIT_STREAM, SHUFFLE_STREAM = 0x5EA00001, 0x5EA00002, 0x5EA00003


class RandomProposals:
    """Fills generations with random paths that pass the screen.

    In this order, until the generation is full: uniform paths; then, in a small space, all paths in a shuffled order,
    in a large one with a MAC limit, paths built to meet it (not uniform). If the configuration says so, the
    same once more without the path filter.
    """

    def __init__(
        self,
        space: SearchSpace,
        allowed: Mask,
        config: SearchConfig,
        screen: Screen,
        seed: int,
        first: Paths | None = None,
    ) -> None:
        """Make a source of random paths; `first`, uint8 [n, L], are proposed before any others."""
        self._space, self._allowed, self._config, self._screen, self._seed = space, allowed, config, screen, seed
        self._uniform = UniformSampler(space, allowed, seed, UNIFORM_STREAM)
        self._first = first
        self._limited = 0
        self._size = int(np.prod([float(n) for n in allowed.sum(axis=1)]).clip(max=ENUMERABLE + 1))

    def propose(self, count: int) -> Paths:
        """At most `count` new paths, uint8 [n, L]."""
        batch = Batch(count, len(self._allowed))
        if self._first is not None:
            self._screen.take(self._first, batch)
            self._first = None
        self.fill(batch)
        return batch.paths

    def learn(self, objectives: npt.NDArray[np.float64]) -> None:
        """Chance learns nothing."""

    def fill(self, batch: Batch) -> None:
        """Add random paths to a generation until it is full or no way of proposing finds more."""
        if not batch.missing:
            return
        relax = self._screen.filters and self._config.when_rejected == "relax"
        for filtered in (True, False) if relax else (True,):
            for source in self._sources(batch):
                for proposals in source:
                    self._screen.take(proposals, batch, filtered=filtered)
                    if not batch.missing:
                        return

    @property
    def sees_everything(self) -> bool:
        """Whether the space is so small that `fill` finds every path that passes the screen."""
        return self._size <= ENUMERABLE

    def _sources(self, batch: Batch) -> Iterator[Iterator[Paths]]:
        if batch.missing:
            yield (self._uniform.sample(self._round(batch)).paths for _ in range(self._config.max_rounds))
        if batch.missing and self.sees_everything:
            yield iter([self._everything()])
        elif batch.missing and self._config.max_macs is not None:
            yield (self._within_limit(self._round(batch)) for _ in range(self._config.max_rounds))

    def _round(self, batch: Batch) -> int:
        return max(MIN_ROUND, self._config.oversample * batch.missing)

    def _everything(self) -> Paths:
        """All paths under the mask, uint8 [size, L], shuffled by the seed."""
        choices = [np.flatnonzero(row).astype(np.uint8) for row in self._allowed]
        grid = np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], axis=1)
        return generator(self._seed, SHUFFLE_STREAM, 0).permutation(grid)

    def _within_limit(self, count: int) -> Paths:
        """Paths that meet the MAC limit by construction, uint8 [count, L].

        From the cheapest path, layers in random order each draw uniformly among the operations that the rest of the
        limit still pays for.
        """
        assert self._config.max_macs is not None
        random = generator(self._seed, LIMIT_STREAM, self._limited)
        self._limited += 1
        macs = np.where(self._allowed, self._space.op_costs()[1], np.iinfo(np.int64).max)
        cheapest, rows = macs.min(axis=1), np.arange(count)
        left = np.full(count, self._config.max_macs - self._space.fixed_cost().macs - int(cheapest.sum()))
        paths = np.empty((count, len(macs)), dtype=np.uint8)
        layers = random.permuted(np.tile(np.arange(len(macs)), (count, 1)), axis=1)  # [count, L]
        for layer in layers.T:  # [count], another layer for each path
            extra = macs[layer] - cheapest[layer, None]  # [count, max_ops]
            draw = np.where(extra <= left[:, None], random.random(extra.shape), -1)
            chosen = draw.argmax(axis=1)
            paths[rows, layer] = chosen
            left -= extra[rows, chosen]
        return paths
