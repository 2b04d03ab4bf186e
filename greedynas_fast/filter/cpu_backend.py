"""Filter inference on the CPU: arrays in, arrays out, over the compiled core."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import call

from .rejection import Rejection, RejectionRequest
from .tensors import FilterTensors


class CpuBackend:
    """One set of weights. `load` replaces them; a call that is under way ends with those it began with."""

    def __init__(self, num_ops: tuple[int, ...], precision: str, num_threads: int | None) -> None:
        """Make a backend without weights; `num_threads` None takes GREEDYNAS_NUM_THREADS or all CPUs at each call."""
        self._num_ops, self._precision, self._num_threads = num_ops, precision, num_threads
        self._model: _core.FilterModel

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use."""
        return self._model.isa

    def load(self, tensors: FilterTensors) -> None:
        """Take in weights; they are copied.

        Raises:
            InputError: a weight that is not finite or beyond 1e15, or an impossible GREEDYNAS_CPU_ISA.
        """
        self._model = call(
            _core.FilterModel,
            self._num_ops,
            tensors.tables.shape[2],
            tensors.hidden,
            self._precision,
            tensors.addresses(),
        )

    def log_prob_weak(self, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous paths [n, L]."""
        result = np.empty(len(paths), dtype=np.float32)
        call(self._model.score, paths.ctypes.data, len(paths), self._threads(), result.ctypes.data)
        return result

    def log_prob_weak_of_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous keys [n, 2]."""
        result = np.empty(len(keys), dtype=np.float32)
        call(self._model.score_keys, keys.ctypes.data, len(keys), self._threads(), result.ctypes.data)
        return result

    def reject(self, request: RejectionRequest) -> Rejection:
        """Rejection sampling; Ctrl-C stops it between rounds."""
        allowed = np.ascontiguousarray(request.allowed)
        accepted, fallbacks, proposals = call(
            self._model.reject,
            allowed.ctypes.data,
            request.seed,
            request.stream,
            request.start,
            request.wanted,
            request.limit,
            request.threshold,
            request.want_fallbacks,
            self._threads(),
        )
        return Rejection(np.frombuffer(accepted, np.uint64), np.frombuffer(fallbacks, np.uint64), proposals)

    def _threads(self) -> int:
        return self._num_threads if self._num_threads is not None else int(call(_core.num_threads))
