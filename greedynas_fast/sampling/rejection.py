"""Paths that a path filter does not call weak (Alg. 1, lines 2-5), found in bulk.

Proposals come from one numbered sequence, and each is accepted or not on its own: what a sampler draws depends neither
on how many paths a call asks for, nor on chunks, threads or the device, and a reloaded sampler goes on exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from greedynas_fast import paths
from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterEngine, Rejection, RejectionRequest
from greedynas_fast.sampling.chunked import ChunkedRejection, ScoringEngine
from greedynas_fast.sampling.mask import check_count, check_identity, check_key, check_mask, identity
from greedynas_fast.sampling.protocol import PathBatch, Paths
from greedynas_fast.spaces import SearchSpace

PROPOSALS_PER_PATH = 1000  # ten times what the strictest published filter (q = 0.99) needs on average


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
    """Draws uniform proposals and keeps those with `log_prob_weak <= threshold`, in the order of their number.

    With a `FilterEngine` the whole loop is native code; any other engine is asked chunk by chunk. The state is the
    number after the last proposal that was used, so `sample(a)` and `sample(b)` give what `sample(a + b)` gives, as
    long as neither runs into `max_proposals`.
    """

    def __init__(
        self,
        space: SearchSpace,
        engine: FilterEngine | ScoringEngine,
        *,
        threshold: float,
        allowed: npt.ArrayLike | None = None,
        seed: int = 0,
        stream: int = 0,
        max_proposals: int | None = None,
        strict: bool = False,
        unique: bool = False,
        chunk_size: int = 2048,
    ) -> None:
        """Make a sampler.

        Args:
            space: the search space.
            engine: a compiled engine, or anything with `log_prob_weak(paths)` for uint8 paths [n, L] that gives finite
                floats [n].
            threshold: the highest log-probability of weak that is accepted.
            allowed: operation mask, bool [L, max_ops]; None allows every operation.
            seed: 0 .. 2**64 - 1.
            stream: 0 .. 2**32 - 1.
            max_proposals: proposals that one call may look at; None is 1,000 for each path that is asked for.
            strict: raise `RejectionError` when they do not suffice, instead of taking the best rejected ones.
            unique: draw without replacement: a path that this sampler has returned before is not accepted again. When
                `max_proposals` do not suffice, `RejectionError` is raised, as in strict mode.
            chunk_size: proposals that are scored together by an engine that is not compiled; affects the speed only.

        Raises:
            InputError: a bad mask, seed, stream, threshold or count, or an engine of another space.
        """
        if np.isnan(threshold):
            raise InputError("threshold must be a number, got nan.")
        if isinstance(engine, FilterEngine) and engine.net.num_ops != space.num_ops:
            raise InputError(f"engine: its filter is not one of the space {space.name}.")
        self.allowed = check_mask(space, allowed)
        self.seed, self.stream = check_key(seed, stream)
        self.engine, self.threshold, self.strict = engine, float(threshold), strict
        self.max_proposals = None if max_proposals is None else check_count(max_proposals, "max_proposals")
        if check_count(chunk_size, "chunk_size") == 0:
            raise InputError("chunk_size must be at least 1, got 0.")
        self._loop = engine if isinstance(engine, FilterEngine) else ChunkedRejection(engine, chunk_size)
        self._next = 0
        self._returned = paths.KeySet() if unique else None

    def sample(self, n: int) -> PathBatch:
        """Find the next `n` accepted paths.

        Args:
            n: number of paths.

        Returns:
            Accepted paths in the order of their proposal number. When `max_proposals` are used up, the rest are the
            proposals of this call with the lowest log-probability of weak among the rejected ones, each once, ordered
            by that value and then by number; `fallbacks` counts them.

        Raises:
            RejectionError: in strict mode or without replacement, when `max_proposals` do not suffice; the state is
                then unchanged.
            InputError: `n` is no count, or above `max_proposals`; the engine gave wrong shapes, NaN or infinities.
        """
        n = check_count(n)
        limit = n * PROPOSALS_PER_PATH if self.max_proposals is None else self.max_proposals
        strict = self.strict or self._returned is not None
        if limit < n and not strict:
            raise InputError(f"max_proposals is {limit}, which can never give the {n} paths that were asked for.")
        if self._returned is not None:
            return self._without_replacement(n, limit, self._returned)
        found = self._reject(self._next, n, limit, want_fallbacks=not strict)
        accepted, missing = len(found.accepted), n - len(found.accepted)
        if missing and strict:
            raise RejectionError(n, accepted, found.proposals)
        self._next += found.proposals
        drawn = self._paths(np.concatenate([found.accepted, found.fallbacks]))
        return PathBatch(drawn, found.proposals, _share(accepted, found.proposals), fallbacks=missing)

    def _without_replacement(self, n: int, limit: int, returned: paths.KeySet) -> PathBatch:
        """Rounds of as many accepted paths as are missing; those that were returned before are left out."""
        new = paths.KeySet()
        drawn = [self._paths(np.empty(0, dtype=np.uint64))]
        proposals = 0
        while len(new) < n:
            found = self._reject(self._next + proposals, n - len(new), limit - proposals)
            proposals += found.proposals
            candidates = self._paths(found.accepted)
            keys = paths.pack(candidates)
            unknown = ~returned.contains(keys)
            unknown[unknown] = new.add(keys[unknown])
            drawn.append(candidates[unknown])
            if len(new) < n and proposals == limit:
                raise RejectionError(n, len(new), proposals)
        returned.add(new.keys())
        self._next += proposals
        return PathBatch(np.concatenate(drawn), proposals, _share(n, proposals))

    def _reject(self, start: int, wanted: int, limit: int, *, want_fallbacks: bool = False) -> Rejection:
        request = RejectionRequest(
            self.allowed, self.seed, self.stream, start, wanted, limit, self.threshold, want_fallbacks
        )
        return self._loop.reject(request)

    def _paths(self, numbers: npt.NDArray[np.uint64]) -> Paths:
        return paths.propose_at(self.allowed, self.seed, self.stream, numbers)

    def state_dict(self) -> dict[str, Any]:
        """The number of the next proposal, the paths returned if that matters, and whose state it is.

        Engine and threshold belong to the caller.
        """
        state = {**self._identity(), "next": self._next}
        if self._returned is not None:
            state["returned"] = torch.from_numpy(self._returned.keys().view(np.int64))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the proposal number in `state`.

        Raises:
            InputError: the state belongs to another sampler.
        """
        check_identity(state, self._identity())
        self._next = check_count(state["next"], "sampler state: next")
        if self._returned is not None:
            self._returned = paths.KeySet()
            self._returned.add(state["returned"].numpy().view(np.uint64))

    def _identity(self) -> dict[str, Any]:
        kind = "filter" if self._returned is None else "filter without replacement"
        return identity(kind, self.seed, self.stream, self.allowed)


def _share(accepted: int, proposals: int) -> float:
    return accepted / proposals if proposals else 1.0
