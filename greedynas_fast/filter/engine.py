"""Compiled inference of a path filter: log Phi of many paths, decisions, and rejection sampling in bulk.

In float32 the CPU levels with fused multiply-add (AVX2, AVX-512) and CUDA give the same bits, so decisions do not
depend on the machine. The torch module stays the reference: `PathFilter.log_prob_weak` differs by float32 rounding,
below 1e-5. In bf16 it is a band: on filters trained in `mb-se` (21 layers, H = 128, log Phi spread by 1 to 2) the
largest difference was 0.016, and 99.98 % of the decisions were equal; on filters trained for a mere 80 steps, of 20,000
paths, 0.036 and 99.98 % with AVX-512, 0.033 and all at q = 0.99 with AVX512-BF16 and AMX.
`FilterEngine.decide(band=...)` tells how many paths are close enough to the threshold to differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.errors import InputError

from .network import PathFilter, PathsLike
from .rejection import Rejection, RejectionRequest
from .tensors import FilterTensors, filter_tensors

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


class Backend(Protocol):
    """The engine of one kind of device."""

    @property
    def isa(self) -> str:
        """What the kernels were compiled for."""
        ...

    def load(self, tensors: FilterTensors) -> None:
        """Take in weights."""
        ...

    def log_prob_weak(self, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous paths [n, L]."""
        ...

    def log_prob_weak_of_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous keys [n, 2]."""
        ...

    def reject(self, request: RejectionRequest) -> Rejection:
        """Rejection sampling."""
        ...


@dataclass(frozen=True)
class Decisions:
    """What a filter decides.

    Attributes:
        accepted: bool [n], log Phi <= threshold.
        in_band: share of the paths whose log Phi is within the band around the threshold, where another precision may
            decide otherwise; 0 for no paths.
    """

    accepted: npt.NDArray[np.bool_]
    in_band: float


class FilterEngine:
    """A path filter, compiled.

    It follows its module: when a parameter was replaced or written to since the last call, the weights are taken in
    again. Calls may come from several threads.

    Attributes:
        net: the torch module.
        device: where it computes.
        precision: `float32`, or `bf16`: W_hh and the hidden state that meets it are rounded to bfloat16.
        screen: whether `reject` scores proposals in bf16 first.
    """

    def __init__(
        self,
        net: PathFilter,
        device: str | torch.device = "cpu",
        *,
        precision: Precision = "float32",
        num_threads: int | None = None,
        screen: bool = False,
    ) -> None:
        """Compile a filter.

        Args:
            net: the network; up to 64 layers, 32 operations a layer and 256 hidden units.
            device: `cpu` or a CUDA device.
            precision: `float32` or `bf16`.
            num_threads: CPU threads; None takes GREEDYNAS_NUM_THREADS, or all CPUs.
            screen: `reject` scores proposals in bf16, and anew in float32 those that are near the threshold: within 16
                times the largest difference of the two on 512 random paths. That no decision differs from float32's
                is likely, not certain. Only where bf16 is faster (AVX512-BF16, AMX); elsewhere it changes nothing.

        Raises:
            InputError: a device, precision, screen, number of threads or network that is not supported; weights that
                are not finite; an instruction set forced by GREEDYNAS_CPU_ISA that this machine or build lacks.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision must be float32 or bf16, got {precision!r}")
        if num_threads is not None and num_threads < 1:
            raise InputError(f"num_threads must be at least 1, got {num_threads}")
        self.net, self.precision, self.screen = net, precision, screen
        self.device = torch.device(device)
        if screen and (precision != "float32" or self.device.type != "cpu"):
            raise InputError(f"screen is for float32 on a CPU, got {precision} on {self.device}")
        self._num_threads = num_threads
        self._backend = self._make_backend()
        self._loaded: tuple[tuple[int, int], ...] = ()
        self.refresh()

    def _make_backend(self) -> Backend:
        if self.device.type == "cpu":
            from .cpu_backend import CpuBackend

            return CpuBackend(self.net.num_ops, self.precision, self._num_threads, self.screen)
        if self.device.type == "cuda":
            from .cuda_backend import CudaEngineBackend

            return CudaEngineBackend(self.net.num_ops, self.precision, self.device)
        raise InputError(f"device must be cpu or cuda, got {self.device}")

    @property
    def isa(self) -> str:
        """The CPU level (portable, avx2, avx512, avx512_bf16, amx) or CUDA architecture of the kernels in use."""
        return self._backend.isa

    def refresh(self) -> None:
        """Take in the module's weights. Only needed after a change that torch does not see, such as through `.data`.

        Raises:
            InputError: a weight that is not finite or beyond 1e15 in magnitude; the old weights stay.
        """
        state = self._module_state()
        self._backend.load(filter_tensors(self.net))
        self._loaded = state

    def log_prob_weak(self, paths: PathsLike) -> npt.NDArray[np.float32]:
        """Log Phi, the log-probability that a path is weak.

        Args:
            paths: integer array or tensor [n, L] or [L]; n may be 0.

        Returns:
            float32 [n].

        Raises:
            InputError: for paths that do not fit the network.
        """
        self._follow()
        return self._backend.log_prob_weak(self._as_paths(paths))

    def log_prob_weak_of_keys(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Log Phi of packed paths.

        Args:
            keys: uint64 [n, 2], as `greedynas_fast.paths.pack` gives them.

        Returns:
            float32 [n].

        Raises:
            InputError: a wrong shape or dtype, keys of longer paths, or operations that a layer does not have.
        """
        array = np.asarray(keys)
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype != np.uint64:
            raise InputError(f"keys must be uint64 [n, 2], got {array.dtype} {list(array.shape)}")
        self._follow()
        return self._backend.log_prob_weak_of_keys(np.ascontiguousarray(array))

    def decide(self, paths: PathsLike, threshold: float, *, band: float = 0.0) -> Decisions:
        """Accept or reject.

        Args:
            paths: as for `log_prob_weak`.
            threshold: the highest log Phi that is accepted.
            band: half the width of the band around it, at least 0.

        Returns:
            The decisions, and the share of paths inside the band.

        Raises:
            InputError: paths that do not fit, a threshold that is NaN, or a negative band.
        """
        if np.isnan(threshold) or not band >= 0:
            raise InputError(f"threshold must be a number and band at least 0, got {threshold} and {band}")
        # float64, because comparing float32 scores with a Python float would round the threshold
        scores = self.log_prob_weak(paths).astype(np.float64)
        near = np.abs(scores - threshold) <= band
        return Decisions(scores <= threshold, float(near.mean()) if len(near) else 0.0)

    def reject(self, request: RejectionRequest) -> Rejection:
        """Rejection sampling in native code; see `greedynas_fast.sampling.FilterSampler` for the sampler.

        Args:
            request: what to draw.

        Returns:
            Numbers of accepted proposals, and how many were looked at.

        Raises:
            InputError: a mask that does not fit the network, a threshold that is NaN.
        """
        shape = (len(self.net.num_ops), max(self.net.num_ops))
        if request.allowed.shape != shape or request.allowed.dtype != np.bool_:
            found = f"{request.allowed.dtype} {list(request.allowed.shape)}"
            raise InputError(f"allowed must be bool {list(shape)} for this filter, got {found}")
        self._follow()
        return self._backend.reject(request)

    def _module_state(self) -> tuple[tuple[int, int], ...]:
        """Where each parameter lies and how often it was written to."""
        return tuple((parameter.data_ptr(), parameter._version) for parameter in self.net.parameters())

    def _follow(self) -> None:
        if self._module_state() != self._loaded:
            self.refresh()

    def _as_paths(self, paths: PathsLike) -> npt.NDArray[np.uint8]:
        array = paths.detach().cpu().numpy() if isinstance(paths, Tensor) else np.asarray(paths)
        if array.ndim == 1:
            array = array[None]
        layers = len(self.net.num_ops)
        if array.ndim != 2 or array.shape[1] != layers:
            raise InputError(f"paths must be [n, {layers}], got {list(array.shape)}")
        if array.dtype == np.uint8:
            return np.ascontiguousarray(array)  # the core checks the operations
        if not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"paths must be integers, got {array.dtype}")
        self.net.check(array)  # before a cast that could wrap
        return np.ascontiguousarray(array, dtype=np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are compiled anew."""
        return _make, (self.net, str(self.device), self.precision, self._num_threads, self.screen)


def _make(net: PathFilter, device: str, precision: Precision, num_threads: int | None, screen: bool) -> FilterEngine:
    return FilterEngine(net, device, precision=precision, num_threads=num_threads, screen=screen)
