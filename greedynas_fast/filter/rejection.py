"""What rejection sampling is asked and what it answers, whatever the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RejectionRequest:
    """Proposals `start`, `start` + 1, .. are looked at until enough are accepted.

    Attributes:
        allowed: operation mask, bool [L, N].
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1.
        start: number of the first proposal.
        wanted: accepted paths asked for.
        limit: proposals that may be looked at.
        threshold: accepted where log Phi <= threshold.
        want_fallbacks: remember the best rejected proposals in case the limit is reached.
    """

    allowed: npt.NDArray[np.bool_]
    seed: int
    stream: int
    start: int
    wanted: int
    limit: int
    threshold: float
    want_fallbacks: bool = False


@dataclass(frozen=True)
class Rejection:
    """The answer, a function of the filter and the request alone.

    Attributes:
        accepted: numbers of the accepted proposals, ascending, uint64 [a].
        fallbacks: if the limit did not suffice and they were asked for: numbers of the rejected proposals with the
            lowest (log Phi, number), in that order, as many as are missing, uint64 [b].
        proposals: how many were looked at: up to the last accepted one, or the limit.
    """

    accepted: npt.NDArray[np.uint64]
    fallbacks: npt.NDArray[np.uint64]
    proposals: int
