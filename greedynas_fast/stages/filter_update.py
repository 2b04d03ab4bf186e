"""One update of the path filter: Alg. 1, lines 8-12, and the stop rule of Eq. (7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast import paths as path_keys
from greedynas_fast.config import TrainConfig
from greedynas_fast.filter import (
    FilterConfig,
    Merge,
    TrainedFilter,
    agreement,
    shrink_operations,
    similarity_matrices,
    train_filter,
)
from greedynas_fast.runtime import Stopwatch, World, seed_for
from greedynas_fast.spaces import SearchSpace

Mask = npt.NDArray[np.bool_]
Paths = npt.NDArray[np.uint8]

# Proposal streams: draws for one purpose never meet those for another.
SCORED_STREAM, UNLABELED_STREAM, AGREEMENT_STREAM, TRAINING_STREAM = range(4)

Poll = Callable[[], None] | None


@dataclass(frozen=True)
class FilterUpdate:
    """What one update decided.

    Attributes:
        trained: the new filter.
        allowed: operation mask [L, N] after merging.
        merges: the operations that left with this update.
        similarity: cosine similarity of the operation embeddings [L, N, N], Eq. (9).
        row: the update as one row of metrics (plain values).
        stop: whether the training has become steady (Eq. 7).
    """

    trained: TrainedFilter
    allowed: Mask
    merges: list[Merge]
    similarity: npt.NDArray[np.float32]
    row: dict[str, Any]
    stop: bool

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` makes an equal update of; it can be sent to another process."""
        return {**vars(self), "trained": self.trained.state_dict()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> FilterUpdate:
        """The update that gave `plain`."""
        return cls(**{**plain, "trained": TrainedFilter.from_state_dict(plain["trained"])})


@dataclass(frozen=True)
class FilterUpdater:
    """Everything that stays the same from one update to the next.

    Attributes:
        space: the search space.
        config: Algorithm 1's numbers.
        filter_config: the filter's own.
        seed: of the run.
        score: validation losses [m] of paths [m, L] on the supernet as it is; calls what it is given now and then.
        inference: takes the time of comparing filters.
        world: the processes of the run. All score, rank 0 decides.
    """

    space: SearchSpace
    config: TrainConfig
    filter_config: FilterConfig
    seed: int
    score: Callable[[Paths, Poll], npt.NDArray[np.float64]]
    inference: Stopwatch
    world: World

    def update(
        self, index: int, q: float, allowed: Mask, previous: TrainedFilter | None, poll: Poll = None
    ) -> FilterUpdate:
        """Score m paths, train the filter on the worst q of them, merge operations, compare with the last filter.

        Args:
            index: number of this update, from 0; all its random draws depend on it and the run's seed alone.
            q: weak-path prior in 0..1.
            allowed: operations still in the space, bool [L, N].
            previous: the filter of the update before, if any.
            poll: called now and then; what it raises ends the update.
        """
        scored = self._draw(SCORED_STREAM, index, self.config.score_paths, allowed)
        losses = self.score(scored, poll)
        decided: list[FilterUpdate] = []

        def decide() -> dict[str, Any]:
            decided.append(self._decide(index, q, scored, losses, allowed, previous, poll))
            return decided[0].to_plain()

        plain = self.world.on_main(decide)
        return decided[0] if decided else FilterUpdate.from_plain(plain)

    def _decide(
        self,
        index: int,
        q: float,
        scored: Paths,
        losses: npt.NDArray[np.float64],
        allowed: Mask,
        previous: TrainedFilter | None,
        poll: Poll,
    ) -> FilterUpdate:
        num_weak = max(1, round(q * len(scored)))
        unlabeled = self._draw(UNLABELED_STREAM, index, self.config.unlabeled_ratio * num_weak, allowed)
        trained = train_filter(
            self.space,
            scored,
            losses,
            unlabeled,
            q,
            self.filter_config,
            seed_for(self.seed, "filter", index),
            initial=previous if self.filter_config.warm_start else None,
            poll=poll,
        )
        embedding = trained.net.embedding.detach()
        merges: list[Merge] = []
        after = allowed
        # A collapsed filter has learned nothing, so its embeddings say nothing about which operations are alike.
        if not trained.collapsed:
            _, macs = self.space.op_costs()
            after, merges = shrink_operations(embedding, allowed, macs, self.config.merge_threshold)
        row, stop = self._summary(index, q, losses, trained, previous, after, merges)
        similarity = np.asarray(similarity_matrices(embedding, allowed), dtype=np.float32)
        return FilterUpdate(trained, after, merges, similarity, row, stop)

    def _draw(self, stream: int, index: int, count: int, allowed: Mask) -> Paths:
        return path_keys.propose(allowed, seed_for(self.seed, "update", index), stream, 0, count)

    def _summary(
        self,
        index: int,
        q: float,
        losses: npt.NDArray[np.float64],
        trained: TrainedFilter,
        previous: TrainedFilter | None,
        allowed: Mask,
        merges: list[Merge],
    ) -> tuple[dict[str, Any], bool]:
        """The row of metrics and the stop decision (Eq. 7; kappa corrects u for chance)."""
        u = kappa = None
        if previous is not None and not trained.collapsed and not previous.collapsed:
            with self.inference:
                compared = agreement(
                    previous, trained, self._draw(AGREEMENT_STREAM, index, self.config.agreement_paths, allowed)
                )
            u, kappa = compared.u, compared.kappa
        steadiness = {"agreement": u, "kappa": kappa, "never": None}[self.config.stop_on]
        stop = steadiness is not None and steadiness > self.config.agreement_threshold
        finite = losses[np.isfinite(losses)]
        ops = self.space.ops
        row: dict[str, Any] = {
            "update": index,
            "q": q,
            "threshold": trained.threshold,
            "auroc": trained.report.auroc,
            "spread": trained.report.spread,
            "collapsed": trained.collapsed,
            "agreement": u,
            "kappa": kappa,
            "merges": [
                {
                    "layer": merge.layer,
                    "kept": ops[merge.layer][merge.kept],
                    "removed": ops[merge.layer][merge.removed],
                    "similarity": merge.similarity,
                }
                for merge in merges
            ],
            "removed_total": int(self.space.allowed.sum() - allowed.sum()),
            "allowed_total": int(allowed.sum()),
            "mean_loss": float(finite.mean()) if len(finite) else None,
            "stop": stop,
        }
        return row, stop
