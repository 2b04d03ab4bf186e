"""Which proposals may be evaluated: new, within the MAC limit, and not weak to the path filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.paths import Keys, KeySet, pack
from greedynas_fast.sampling.arrays import as_array
from greedynas_fast.sampling.protocol import Mask, Paths
from greedynas_fast.search.config import SearchConfig
from greedynas_fast.spaces import SearchSpace

IsWeak = Callable[[Paths], Any]  # uint8 [n, L] -> bool [n], an array or a tensor


@dataclass
class ScreenCounts:
    """What became of the proposals of a search so far.

    Attributes:
        proposals: looked at.
        duplicates: evaluated already, or equal to another proposal.
        over_limit: more MACs than allowed.
        weak: rejected by the path filter.
        relaxed: accepted without asking the path filter, because it left too few.
    """

    proposals: int = 0
    duplicates: int = 0
    over_limit: int = 0
    weak: int = 0
    relaxed: int = 0


class Screen:
    """Judges proposals in bulk; remembers which networks were evaluated."""

    def __init__(self, space: SearchSpace, allowed: Mask, config: SearchConfig, is_weak: IsWeak | None) -> None:
        """Make a screen.

        Raises:
            InputError: no path under the mask meets the MAC limit.
        """
        self.counts = ScreenCounts()
        self._space, self._config, self._is_weak = space, config, is_weak
        self._seen = KeySet()
        macs = space.op_costs()[1]
        smallest = space.fixed_cost().macs + int(np.where(allowed, macs, np.iinfo(np.int64).max).min(axis=1).sum())
        if config.max_macs is not None and smallest > config.max_macs:
            raise InputError(
                f"search.max_macs is {config.max_macs:,.0f}, but the smallest path of the space {space.name} "
                f"under the operation mask has {smallest:,} MACs."
            )

    @property
    def filters(self) -> bool:
        """Whether there is a path filter."""
        return self._is_weak is not None

    def remember(self, paths: Paths) -> None:
        """Count these paths as evaluated."""
        self._seen.add(self._keys(paths))

    def take(self, proposals: Paths, batch: Batch, *, filtered: bool = True) -> None:
        """Add to `batch` the proposals that may be evaluated, in their order, until it is full.

        Args:
            proposals: uint8 [n, L], under the operation mask.
            batch: the generation that is being made.
            filtered: ask the path filter; without it, the added ones are counted as relaxed.

        Raises:
            InputError: the filter did not answer with one truth value a path.
        """
        self.counts.proposals += len(proposals)
        keys = self._keys(proposals)
        chosen = np.flatnonzero(~(self._seen.contains(keys) | batch.keys.contains(keys)))
        chosen = chosen[KeySet().add(keys[chosen])]  # the first of equal ones
        self.counts.duplicates += len(proposals) - len(chosen)
        if self._config.max_macs is not None and len(chosen):
            fits = self._space.costs(proposals[chosen])[1] <= self._config.max_macs
            self.counts.over_limit += int(np.count_nonzero(~fits))
            chosen = chosen[fits]
        if filtered and self._is_weak is not None and len(chosen):
            weak = self._weak(proposals[chosen])
            self.counts.weak += int(np.count_nonzero(weak))
            chosen = chosen[~weak]
        chosen = chosen[: batch.missing]
        if not filtered:
            self.counts.relaxed += len(chosen)
        batch.add(proposals[chosen], keys[chosen])

    def _keys(self, paths: Paths) -> Keys:
        """What makes two paths count as equal, uint64 [n, 2]."""
        return pack(self._space.canonical(paths) if self._config.unique_networks and len(paths) else paths)

    def _weak(self, paths: Paths) -> npt.NDArray[np.bool_]:
        assert self._is_weak is not None
        weak = as_array(self._is_weak(paths))
        if weak.shape != (len(paths),) or weak.dtype != np.bool_:
            raise InputError(
                f"is_weak must give booleans [{len(paths)}], one a path, got {weak.dtype} {list(weak.shape)}."
            )
        return weak


class Batch:
    """A generation that is being made: at most `size` paths, no two equal."""

    def __init__(self, size: int, num_layers: int) -> None:
        self.size = size
        self.keys = KeySet()
        self._parts: list[Paths] = [np.empty((0, num_layers), dtype=np.uint8)]

    @property
    def missing(self) -> int:
        """Paths that are still to be found."""
        return self.size - len(self.keys)

    @property
    def paths(self) -> Paths:
        """The paths so far, uint8 [n, L]."""
        return np.concatenate(self._parts)

    def add(self, paths: Paths, keys: Keys) -> None:
        """Add paths that are known to be new."""
        self._parts.append(paths)
        self.keys.add(keys)
