"""What every sampler has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Paths = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PathBatch:
    """Paths that a sampler drew.

    Attributes:
        paths: uint8 [n, L], operation index in each layer.
        proposals: how many paths were looked at to find these.
        acceptance: share of the proposals that was accepted; 1 when nothing was rejected or nothing was asked.
        fallbacks: how many of the paths (the last ones) had been rejected and were taken for want of better.
    """

    paths: Paths
    proposals: int
    acceptance: float
    fallbacks: int = 0


class Sampler(Protocol):
    """Draws paths; its state holds plain values and tensors, so `torch.load(weights_only=True)` reads it."""

    def sample(self, n: int) -> PathBatch:
        """Draw `n` paths."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next `sample` depends on, besides what the constructor was given."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the sampler that gave `state` stood."""
        ...
