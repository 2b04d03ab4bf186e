"""Strictly fair sampling (FairNAS): every operation of a layer is used equally often within a group of paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.sampling.mask import check_count, check_identity, check_key, check_mask, identity
from greedynas_fast.sampling.philox import generator
from greedynas_fast.sampling.protocol import Mask, PathBatch, Paths
from greedynas_fast.spaces import SearchSpace


def group_size(allowed: Mask) -> int:
    """Paths of a strictly fair group: operations of the layer with the most that a mask, bool [L, max_ops], allows."""
    return int(allowed.sum(axis=1).max())


class FairSampler:
    """Draws paths in groups that come from one random permutation of the allowed operations a layer.

    A group has as many paths as the layer with the most allowed operations has operations. Such a layer uses each of
    them exactly once a group; a layer with fewer goes through its permutation again and again.
    Train on one group for each optimizer step, with the gradients of its paths added up, to do as FairNAS does.

    Attributes:
        group_size: paths a group.
    """

    def __init__(
        self, space: SearchSpace, allowed: npt.ArrayLike | None = None, seed: int = 0, stream: int = 0
    ) -> None:
        """Make a sampler.

        Args:
            space: the search space.
            allowed: operation mask, bool [L, max_ops]; None allows every operation.
            seed: 0 .. 2**64 - 1.
            stream: 0 .. 2**32 - 1.

        Raises:
            InputError: a bad mask, seed or stream.
        """
        self.allowed = check_mask(space, allowed)
        self.seed, self.stream = check_key(seed, stream)
        self.group_size = group_size(self.allowed)
        self._next = 0

    def sample(self, n: int) -> PathBatch:
        """Draw the next `n` paths, a multiple of `group_size` for whole groups; calls may split groups anywhere."""
        n = check_count(n)
        first, last = self._next // self.group_size, -(-(self._next + n) // self.group_size)
        groups = [self._group(index) for index in range(first, last)]
        offset = self._next - first * self.group_size
        drawn = np.concatenate([np.empty((0, len(self.allowed)), dtype=np.uint8), *groups])[offset : offset + n]
        self._next += n
        return PathBatch(drawn, proposals=n, acceptance=1.0)

    def state_dict(self) -> dict[str, Any]:
        """The index of the next path, and whose state it is."""
        return {**identity("fair", self.seed, self.stream, self.allowed), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the index in `state`.

        Raises:
            InputError: the state belongs to another sampler.
        """
        check_identity(state, identity("fair", self.seed, self.stream, self.allowed))
        self._next = check_count(state["next"], "sampler state: next")

    def _group(self, index: int) -> Paths:
        """Group `index`, uint8 [group_size, L]."""
        keys = generator(self.seed, self.stream, index).random(self.allowed.shape)
        keys[~self.allowed] = np.inf
        permutation = np.argsort(keys, axis=1, kind="stable").astype(np.uint8)  # [L, max_ops], allowed ones first
        position = np.arange(self.group_size)[:, None] % self.allowed.sum(axis=1)  # [group_size, L]
        group: Paths = permutation[np.arange(len(self.allowed)), position]
        return group
