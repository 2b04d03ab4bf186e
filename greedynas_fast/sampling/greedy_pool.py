"""GreedyNAS: the better half of a few candidates, some of them from a pool of the best paths so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.sampling.mask import check_count, check_identity, check_key, check_mask, identity
from greedynas_fast.sampling.philox import generator
from greedynas_fast.sampling.protocol import PathBatch, Paths
from greedynas_fast.spaces import SearchSpace


def pool_probability(step: int, warmup_steps: int, total_steps: int, final: float = 0.8) -> float:
    """GreedyNAS's epsilon: 0 up to the end of warm-up, then linear to `final` at `total_steps`.

    Args:
        step: the current step (or epoch; the unit is the caller's).
        warmup_steps: where the rise starts.
        total_steps: where it ends.
        final: its last value.

    Returns:
        The probability of drawing from the pool, 0 .. `final`.
    """
    if step <= warmup_steps:
        return 0.0
    return final * min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))


class GreedyPoolSampler:
    """Draws candidates from a pool of the best paths or uniformly, and keeps the best of those that were scored.

    `ask` gives `candidates` paths; score them and `tell` the losses, which returns the `keep` best to train on.

    Attributes:
        epsilon: probability that a candidate comes from the pool; set it as training goes on (`pool_probability`).
    """

    def __init__(
        self,
        space: SearchSpace,
        allowed: npt.ArrayLike | None = None,
        seed: int = 0,
        stream: int = 0,
        *,
        candidates: int = 10,
        keep: int = 5,
        pool_size: int = 1000,
    ) -> None:
        """Make a sampler with an empty pool.

        Args:
            space: the search space.
            allowed: operation mask, bool [L, max_ops]; None allows every operation.
            seed: 0 .. 2**64 - 1.
            stream: 0 .. 2**32 - 1.
            candidates: paths `m` that `ask` gives.
            keep: paths `k` that `tell` returns.
            pool_size: most paths that the pool holds.

        Raises:
            InputError: a bad mask, seed, stream or count.
        """
        self.allowed = check_mask(space, allowed)
        self.seed, self.stream = check_key(seed, stream)
        if not 1 <= keep <= candidates or pool_size < 1:
            raise InputError(
                f"keep must be 1 to candidates and pool_size at least 1, "
                f"got keep={keep}, candidates={candidates}, pool_size={pool_size}."
            )
        self.candidates, self.keep, self.pool_size = candidates, keep, pool_size
        self.epsilon = 0.0
        self._next = 0
        self._paths = self._marked = np.empty((0, len(self.allowed)), dtype=np.uint8)
        self._losses = np.empty(0)

    @property
    def pool(self) -> Paths:
        """The paths of the pool, best first, uint8 [p, L]; a good first population for a search."""
        return self._paths.copy()

    def ask(self) -> Paths:
        """The next candidates to be scored, uint8 [candidates, L]."""
        return self.sample(self.candidates).paths

    def tell(self, scored: npt.ArrayLike, losses: npt.ArrayLike) -> Paths:
        """Take in the losses of paths and choose those to train on.

        Args:
            scored: paths [m, L].
            losses: their losses, finite floats [m]. A path that is in the pool already takes its new loss.

        Returns:
            The `keep` paths with the lowest losses, uint8 [min(keep, m), L], lowest first, equal ones as they came.

        Raises:
            InputError: shapes that do not match, or a loss that is not finite.
        """
        new = np.asarray(scored, dtype=np.uint8)
        new_losses = np.asarray(losses, dtype=np.float64)
        if new.ndim != 2 or new.shape[1] != len(self.allowed) or new_losses.shape != (len(new),):
            raise InputError(
                f"tell: expected paths [m, {len(self.allowed)}] and losses [m], "
                f"got {list(new.shape)} and {list(new_losses.shape)}."
            )
        if not np.isfinite(new_losses).all():
            raise InputError("tell: losses must be finite, got NaN or infinity.")
        self._insert(new, new_losses)
        return new[np.argsort(new_losses, kind="stable")[: self.keep]]

    def mark(self) -> None:
        """Remember the pool as it is, for `overlap`."""
        self._marked = self._paths

    def overlap(self) -> float:
        """Share of the pool that was in it at the last `mark`; near 1 when the pool is steady. 0 for an empty pool."""
        if not len(self._paths):
            return 0.0
        marked = {path.tobytes() for path in self._marked}
        return sum(path.tobytes() in marked for path in self._paths) / len(self._paths)

    def sample(self, n: int) -> PathBatch:
        """Draw `n` candidates: each from the pool with probability `epsilon`, else uniformly."""
        n = check_count(n)
        drawn = paths.propose(self.allowed, self.seed, self.stream, self._next, n)
        for row in range(n if self.epsilon > 0 and len(self._paths) else 0):
            random = generator(self.seed, self.stream, self._next + row)
            if random.random() < self.epsilon:
                drawn[row] = self._paths[random.integers(len(self._paths))]
        self._next += n
        return PathBatch(drawn, proposals=n, acceptance=1.0)

    def state_dict(self) -> dict[str, Any]:
        """Pool, mark, epsilon and the index of the next draw, and whose state it is."""
        return {
            **identity("greedy-pool", self.seed, self.stream, self.allowed),
            "next": self._next,
            "epsilon": self.epsilon,
            "paths": torch.tensor(self._paths),
            "losses": torch.tensor(self._losses),
            "marked": torch.tensor(self._marked),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: the state belongs to another sampler.
        """
        check_identity(state, identity("greedy-pool", self.seed, self.stream, self.allowed))
        self._next = check_count(state["next"], "sampler state: next")
        self.epsilon = float(state["epsilon"])
        self._paths, self._losses = state["paths"].numpy().copy(), state["losses"].numpy().copy()
        self._marked = state["marked"].numpy().copy()

    def _insert(self, new: Paths, losses: npt.NDArray[np.float64]) -> None:
        """Merge scored paths into the pool; the latest loss of a path counts; equal losses keep the older first."""
        latest = {path.tobytes(): index for index, path in enumerate(new)}
        kept = np.array([path.tobytes() not in latest for path in self._paths], dtype=bool)
        fresh = sorted(latest.values())
        merged = np.concatenate([self._paths[kept], new[fresh]])
        merged_losses = np.concatenate([self._losses[kept], losses[fresh]])
        order = np.argsort(merged_losses, kind="stable")[: self.pool_size]
        self._paths, self._losses = merged[order], merged_losses[order]
