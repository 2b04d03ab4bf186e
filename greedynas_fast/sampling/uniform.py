"""Uniform single paths (SPOS): every allowed path has the same probability."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from greedynas_fast import paths
from greedynas_fast.sampling.mask import check_count, check_identity, check_key, check_mask, identity
from greedynas_fast.sampling.protocol import PathBatch
from greedynas_fast.spaces import SearchSpace


class UniformSampler:
    """Draws paths uniformly over the allowed operations; path `i` is `paths.propose(allowed, seed, stream, i, 1)`."""

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
        self._next = 0

    def sample(self, n: int) -> PathBatch:
        """Draw the next `n` paths; `sample(a)` and `sample(b)` give what `sample(a + b)` gives."""
        n = check_count(n)
        drawn = paths.propose(self.allowed, self.seed, self.stream, self._next, n)
        self._next += n
        return PathBatch(drawn, proposals=n, acceptance=1.0)

    def state_dict(self) -> dict[str, Any]:
        """The index of the next path, and whose state it is."""
        return {**identity("uniform", self.seed, self.stream, self.allowed), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the index in `state`.

        Raises:
            InputError: the state belongs to another sampler.
        """
        check_identity(state, identity("uniform", self.seed, self.stream, self.allowed))
        self._next = check_count(state["next"], "sampler state: next")
