"""Rejection sampling with any engine that scores paths, such as a torch module: the reference of the native loop.

Proposals are scored in chunks that start at multiples of the chunk size. So the score of a proposal never depends on
how many paths a call asks for, even where the engine's rounding depends on the batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.filter import Rejection, RejectionRequest
from greedynas_fast.sampling.arrays import as_array
from greedynas_fast.sampling.protocol import Paths

Scores = npt.NDArray[np.float64]


class ScoringEngine(Protocol):
    """Anything that scores paths: a `PathFilter`, a `FilterEngine`."""

    def log_prob_weak(self, paths: Paths) -> Any:
        """Log-probability that each path is weak, float [n] as an array or a tensor."""
        ...


class ChunkedRejection:
    """`reject` over an engine that can only score."""

    def __init__(self, engine: ScoringEngine, chunk_size: int) -> None:
        self._engine, self._chunk_size = engine, chunk_size
        self._last: tuple[tuple[Any, ...], Scores] | None = None  # the last chunk, so as not to redo it

    def reject(self, request: RejectionRequest) -> Rejection:
        """See `greedynas_fast.filter.FilterEngine.reject`.

        Raises:
            InputError: the engine gave wrong shapes, NaN or infinities.
        """
        position, end, missing = request.start, request.start + request.limit, request.wanted
        accepted: list[npt.NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        reserve = _Reserve(request.wanted if request.want_fallbacks else 0)
        while missing and position < end:
            first = position - position % self._chunk_size
            scores = self._scores(request, first)[position - first : end - first]
            found = np.flatnonzero(scores <= request.threshold)[:missing]
            accepted.append(position + found.astype(np.uint64))
            missing -= len(found)
            rejected = np.flatnonzero(scores > request.threshold) if missing else found[:0]
            reserve.add(scores[rejected], position + rejected.astype(np.uint64))
            position += len(scores) if missing else int(found[-1]) + 1
        return Rejection(np.concatenate(accepted), reserve.best(missing), position - request.start)

    def _scores(self, request: RejectionRequest, first: int) -> Scores:
        """Of the chunk that begins with proposal `first`."""
        key = (request.allowed.tobytes(), request.seed, request.stream, first)
        if self._last is None or self._last[0] != key:
            chunk = paths.propose(request.allowed, request.seed, request.stream, first, self._chunk_size)
            # float64, because comparing float32 scores with a Python float would round the threshold
            scores = as_array(self._engine.log_prob_weak(chunk)).astype(np.float64)
            if scores.shape != (len(chunk),):
                raise InputError(f"engine: log_prob_weak gave {list(scores.shape)} values for {len(chunk)} paths.")
            bad = int(np.count_nonzero(~np.isfinite(scores)))
            if bad:
                raise InputError(f"engine: log_prob_weak gave {bad} NaN or infinite values for {len(chunk)} paths.")
            self._last = (key, scores)
        return self._last[1]


class _Reserve:
    """The `size` lowest-scored rejected proposals so far, in the order (score, number)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores, self._numbers = np.empty(0), np.empty(0, dtype=np.uint64)

    def add(self, scores: Scores, numbers: npt.NDArray[np.uint64]) -> None:
        """Merge in the rejected ones of a chunk; chunks come in the order of their numbers."""
        merged = np.concatenate([self._scores, scores])
        order = np.argsort(merged, kind="stable")[: self._size]  # stable: equal scores stay in the order of numbers
        self._scores, self._numbers = merged[order], np.concatenate([self._numbers, numbers])[order]

    def best(self, count: int) -> npt.NDArray[np.uint64]:
        """The `count` lowest-scored ones."""
        return self._numbers[:count]
