"""A trained path filter: the network, its threshold and the report of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError

from .engine import FilterEngine
from .network import PathFilter, PathsLike


@dataclass(frozen=True)
class FilterReport:
    """What a training of the filter gave. Plain values only, a pure function of the inputs (no times).

    Attributes:
        loss: name of the loss.
        q: share of weak paths.
        steps: optimizer steps.
        num_scored: scored paths.
        num_weak: size of P that was trained on.
        num_good: good scored paths that were trained on (0 for PU losses).
        num_unlabeled: size of U.
        held_out_weak: held-out weak paths.
        held_out_good: held-out good paths.
        first_loss: training loss of the first step; None if it is not finite.
        final_loss: mean training loss of the last tenth of the steps; None if it is not finite.
        threshold: largest log Phi that is accepted.
        accepted_share: share of U with log Phi <= threshold.
        spread: standard deviation of log Phi over U.
        auroc: on held-out labels, or None.
        auroc_bound: what `auroc` had to exceed, or None.
        collapsed: whether the filter learned nothing.
        reason: why it counts as collapsed; empty otherwise.
    """

    loss: str
    q: float
    steps: int
    num_scored: int
    num_weak: int
    num_good: int
    num_unlabeled: int
    held_out_weak: int
    held_out_good: int
    first_loss: float | None
    final_loss: float | None
    threshold: float
    accepted_share: float
    spread: float
    auroc: float | None
    auroc_bound: float | None
    collapsed: bool
    reason: str


class TrainedFilter:
    """Decides which paths are weak.

    Attributes:
        net: the network.
        threshold: a path is weak where log Phi > threshold.
        report: how the training went.
    """

    def __init__(self, net: PathFilter, threshold: float, report: FilterReport) -> None:
        self.net = net
        self.threshold = threshold
        self.report = report

    @cached_property
    def engine(self) -> FilterEngine:
        """The network, compiled for this CPU at the first use; it follows changes of the network's weights."""
        return FilterEngine(self.net)

    @property
    def collapsed(self) -> bool:
        """Whether the filter learned nothing; `is_weak` then rejects no path."""
        return self.report.collapsed

    def log_prob_weak(self, paths: PathsLike) -> npt.NDArray[np.float32]:
        """Log Phi of each path.

        Args:
            paths: integer array or tensor [n, L] or [L].

        Returns:
            float32 [n].

        Raises:
            InputError: for paths that do not fit.
        """
        return self.engine.log_prob_weak(paths)

    def is_weak(self, paths: PathsLike) -> npt.NDArray[np.bool_]:
        """Which paths the filter rejects; none if it has collapsed.

        Args:
            paths: integer array or tensor [n, L] or [L].

        Returns:
            bool [n].

        Raises:
            InputError: for paths that do not fit.
        """
        if self.collapsed:
            return np.zeros(len(self.net.check(paths)), dtype=np.bool_)
        return ~self.engine.decide(paths, self.threshold).accepted

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values, loadable with `torch.load(weights_only=True)`."""
        return {
            "num_ops": list(self.net.num_ops),
            "hidden": self.net.hidden,
            "threshold": self.threshold,
            "report": asdict(self.report),
            "weights": {name: value.detach().cpu().clone() for name, value in self.net.state_dict().items()},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainedFilter:
        """The filter that `state_dict` described.

        Args:
            state: the result of `state_dict`.

        Returns:
            An equal filter on the CPU.

        Raises:
            InputError: if an entry is missing or does not fit.
        """
        wanted = {"num_ops", "hidden", "threshold", "report", "weights"}
        if missing := wanted - set(state):
            raise InputError(f"state: the filter's state lacks {', '.join(sorted(missing))}")
        if set(state["report"]) != {field.name for field in fields(FilterReport)}:
            raise InputError("state: the filter's report does not have the expected entries")
        net = PathFilter(state["num_ops"], state["hidden"])
        try:
            net.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise InputError(f"state: the filter's weights do not fit its layers and operations: {error}") from error
        return cls(net, float(state["threshold"]), FilterReport(**state["report"]))
