"""Filter inference on the CPU: arrays in, arrays out, over the compiled core."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import call

from .rejection import Rejection, RejectionRequest
from .tensors import FilterTensors

FAST_BF16 = ("avx512_bf16", "amx")  # levels at which bf16 is faster than float32
SCREEN_PATHS = 512  # random ones, on which the screen is compared with the filter
# The band, in largest differences found there. Differences have a long tail: on 20,000 paths the largest was 5 times as
# large, for a filter with steep decisions.
SCREEN_MARGIN = 16


class _Models(NamedTuple):
    """What a call works with."""

    model: _core.FilterModel
    screen: _core.FilterModel | None
    band: float


class CpuBackend:
    """One set of weights. `load` replaces them; a call that is under way ends with those it began with."""

    def __init__(self, num_ops: tuple[int, ...], precision: str, num_threads: int | None, screen: bool = False) -> None:
        """Make a backend without weights; `num_threads` None takes GREEDYNAS_NUM_THREADS or all CPUs at each call."""
        self._num_ops, self._precision, self._num_threads = num_ops, precision, num_threads
        self._wants_screen = screen
        self._models: _Models

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use."""
        return self._models.model.isa

    def load(self, tensors: FilterTensors) -> None:
        """Take in weights; they are copied.

        Raises:
            InputError: a weight that is not finite or beyond 1e15, or an impossible GREEDYNAS_CPU_ISA.
        """
        model = self._compile(tensors, self._precision)
        screen = self._compile(tensors, "bf16") if self._wants_screen else None
        if screen is not None and screen.isa not in FAST_BF16:
            screen = None
        self._models = _Models(model, screen, 0.0 if screen is None else self._band(model, screen))

    def _compile(self, tensors: FilterTensors, precision: str) -> _core.FilterModel:
        sizes = self._num_ops, tensors.tables.shape[2], tensors.hidden
        return call(_core.FilterModel, *sizes, precision, tensors.addresses())

    def _band(self, model: _core.FilterModel, screen: _core.FilterModel) -> float:
        """How near to the threshold the screen's word is not taken."""
        size = (SCREEN_PATHS, len(self._num_ops))
        sample = np.random.default_rng(0).integers(0, self._num_ops, size, dtype=np.uint8)
        differences = self._score(model, sample).astype(np.float64) - self._score(screen, sample)
        return SCREEN_MARGIN * float(np.abs(differences).max())

    def log_prob_weak(self, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous paths [n, L]."""
        return self._score(self._models.model, paths)

    def _score(self, model: _core.FilterModel, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        result = np.empty(len(paths), dtype=np.float32)
        call(model.score, paths.ctypes.data, len(paths), self._threads(), result.ctypes.data)
        return result

    def log_prob_weak_of_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous keys [n, 2]."""
        result = np.empty(len(keys), dtype=np.float32)
        call(self._models.model.score_keys, keys.ctypes.data, len(keys), self._threads(), result.ctypes.data)
        return result

    def reject(self, request: RejectionRequest) -> Rejection:
        """Rejection sampling; Ctrl-C stops it between rounds."""
        allowed = np.ascontiguousarray(request.allowed)
        model, screen, band = self._models
        accepted, fallbacks, proposals = call(
            model.reject,
            allowed.ctypes.data,
            request.seed,
            request.stream,
            request.start,
            request.wanted,
            request.limit,
            request.threshold,
            request.want_fallbacks,
            self._threads(),
            screen,
            band,
        )
        return Rejection(np.frombuffer(accepted, np.uint64), np.frombuffer(fallbacks, np.uint64), proposals)

    def _threads(self) -> int:
        return self._num_threads if self._num_threads is not None else int(call(_core.num_threads))
