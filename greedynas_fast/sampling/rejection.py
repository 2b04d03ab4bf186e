"""Paths that a path filter does not call weak (Alg. 1, lines 2-5), found in bulk.

Proposals come from one numbered sequence, which is scored in chunks that start at multiples of the chunk size. So the
score of a proposal never depends on how many paths a call asks for, even where the engine's rounding depends on the
batch, and a reloaded sampler finds the same paths.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.sampling.arrays import as_array
from greedynas_fast.sampling.mask import check_count, check_identity, check_key, check_mask, identity
from greedynas_fast.sampling.protocol import PathBatch, Paths
from greedynas_fast.spaces import SearchSpace

PROPOSALS_PER_PATH = 1000  # ten times what the strictest published filter (q = 0.99) needs on average


class ScoringEngine(Protocol):
    """Anything that scores paths: a `PathFilter`, a `TrainedFilter`, a compiled engine."""

    def log_prob_weak(self, paths: Paths) -> Any:
        """Log-probability that each path is weak, float [n] as an array or a tensor."""
        ...


class RejectionError(RuntimeError):
    """Not enough proposals were accepted in strict mode.

    Attributes:
        requested: paths that were asked for.
        accepted: paths that were accepted.
        proposals: proposals that were looked at.
    """

    def __init__(self, requested: int, accepted: int, proposals: int) -> None:
        self.requested, self.accepted, self.proposals = requested, accepted, proposals
        super().__init__(
            f"the path filter accepted {accepted} of {proposals} proposals, {requested} were asked for; "
            "raise max_proposals or the threshold, or check whether the filter has collapsed"
        )


class FilterSampler:
    """Draws uniform proposals and keeps those with `log_prob_weak <= threshold`, in the order of their index.

    The state is the index after the last proposal that was used, so `sample(a)` and `sample(b)` give what
    `sample(a + b)` gives, as long as neither runs into `max_proposals`.
    """

    def __init__(
        self,
        space: SearchSpace,
        engine: ScoringEngine,
        *,
        threshold: float,
        allowed: npt.ArrayLike | None = None,
        seed: int = 0,
        stream: int = 0,
        max_proposals: int | None = None,
        strict: bool = False,
        chunk_size: int = 2048,
    ) -> None:
        """Make a sampler.

        Args:
            space: the search space.
            engine: gives `log_prob_weak(paths)` for uint8 paths [n, L], finite floats [n].
            threshold: the highest log-probability of weak that is accepted.
            allowed: operation mask, bool [L, max_ops]; None allows every operation.
            seed: 0 .. 2**64 - 1.
            stream: 0 .. 2**32 - 1.
            max_proposals: proposals that one call may look at; None is 1,000 for each path that is asked for.
            strict: raise `RejectionError` when they do not suffice, instead of taking the best rejected ones.
            chunk_size: proposals that are scored together; affects the speed only.

        Raises:
            InputError: a bad mask, seed, stream, threshold or count.
        """
        if np.isnan(threshold):
            raise InputError("threshold must be a number, got nan.")
        self.allowed = check_mask(space, allowed)
        self.seed, self.stream = check_key(seed, stream)
        self.engine, self.threshold, self.strict = engine, float(threshold), strict
        self.max_proposals = None if max_proposals is None else check_count(max_proposals, "max_proposals")
        self.chunk_size = check_count(chunk_size, "chunk_size")
        if self.chunk_size == 0:
            raise InputError("chunk_size must be at least 1, got 0.")
        self._next = 0
        self._scored: tuple[int, Paths, npt.NDArray[np.float64]] | None = None  # the last chunk, so as not to redo it

    def sample(self, n: int) -> PathBatch:
        """Find the next `n` accepted paths.

        Args:
            n: number of paths.

        Returns:
            Accepted paths in the order of their proposal index. When `max_proposals` are used up, the rest are the
            proposals of this call with the lowest log-probability of weak among the rejected ones, each once, ordered
            by that value and then by index; `fallbacks` counts them.

        Raises:
            RejectionError: in strict mode, when `max_proposals` do not suffice; the state is then unchanged.
            InputError: `n` is no count, or above `max_proposals`; the engine gave wrong shapes, NaN or infinities.
        """
        n = check_count(n)
        limit = n * PROPOSALS_PER_PATH if self.max_proposals is None else self.max_proposals
        if limit < n and not self.strict:
            raise InputError(f"max_proposals is {limit}, which can never give the {n} paths that were asked for.")
        start, end, position = self._next, self._next + limit, self._next
        found: list[Paths] = []
        rejected = _Reserve(n, self.allowed.shape[0])
        missing = n
        while missing and position < end:
            first, chunk, scores = self._chunk(position // self.chunk_size)
            window = slice(position - first, min(self.chunk_size, end - first))
            chunk, scores = chunk[window], scores[window]
            accepted = np.flatnonzero(scores <= self.threshold)[:missing]
            found.append(chunk[accepted])
            missing -= len(accepted)
            if missing:
                rejected.add(chunk, scores, scores > self.threshold)
                position += len(chunk)
            else:
                position += int(accepted[-1]) + 1
        if missing and self.strict:
            raise RejectionError(n, n - missing, position - start)
        found.append(rejected.best(missing))
        self._next = position
        acceptance = (n - missing) / (position - start) if position > start else 1.0
        return PathBatch(np.concatenate(found), position - start, acceptance, fallbacks=missing)

    def state_dict(self) -> dict[str, Any]:
        """The index of the next proposal, and whose state it is. Engine and threshold belong to the caller."""
        return {**identity("filter", self.seed, self.stream, self.allowed), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the proposal index in `state`.

        Raises:
            InputError: the state belongs to another sampler.
        """
        check_identity(state, identity("filter", self.seed, self.stream, self.allowed))
        self._next = check_count(state["next"], "sampler state: next")

    def _chunk(self, number: int) -> tuple[int, Paths, npt.NDArray[np.float64]]:
        """Index of the first proposal, proposals and scores of chunk `number`."""
        first = number * self.chunk_size
        if self._scored is None or self._scored[0] != first:
            chunk = paths.propose(self.allowed, self.seed, self.stream, first, self.chunk_size)
            # float64, because comparing float32 scores with a Python float would round the threshold
            scores = as_array(self.engine.log_prob_weak(chunk)).astype(np.float64)
            if scores.shape != (len(chunk),):
                raise InputError(f"engine: log_prob_weak gave {list(scores.shape)} values for {len(chunk)} paths.")
            bad = int(np.count_nonzero(~np.isfinite(scores)))
            if bad:
                raise InputError(f"engine: log_prob_weak gave {bad} NaN or infinite values for {len(chunk)} paths.")
            self._scored = (first, chunk, scores)
        return self._scored


class _Reserve:
    """The `size` lowest-scored rejected proposals so far, in the order (score, index)."""

    def __init__(self, size: int, num_layers: int) -> None:
        self._size = size
        self._paths: Paths = np.empty((0, num_layers), dtype=np.uint8)
        self._scores = np.empty(0)

    def add(self, chunk: Paths, scores: npt.NDArray[np.float64], rejected: npt.NDArray[np.bool_]) -> None:
        """Merge in the rejected ones of a chunk; chunks come in the order of their index."""
        merged = np.concatenate([self._scores, scores[rejected]])
        order = np.argsort(merged, kind="stable")[: self._size]  # stable: equal scores stay in the order of index
        self._paths = np.concatenate([self._paths, chunk[rejected]])[order]
        self._scores = merged[order]

    def best(self, count: int) -> Paths:
        """The `count` lowest-scored ones."""
        return self._paths[:count]
