"""The path filter's inference on a CUDA device: scores of paths or keys, and rejection sampling in bulk.

`float32` gives the bits of the CPU engine; `bf16` uses tensor cores and is several times faster. Legend: L layers, N
operations in the widest layer, H hidden units, n paths.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast._cuda import index_of, memory, require_device, stream_of
from greedynas_fast.errors import InputError, call
from greedynas_fast.paths.cuda import as_mask, check_numbers

from .rejection import Rejection, RejectionRequest
from .tensors import MAX_WEIGHT, FilterTensors

PRECISIONS = ("float32", "bf16")

Numbers = npt.NDArray[np.uint64]


class CudaBackend:
    """Scores paths on one CUDA device, on torch's current stream. `load` comes before anything else.

    Attributes:
        num_ops: operations of each layer.
        hidden: H.
        precision: `float32` or `bf16`.
        device: the device, with its index.
    """

    def __init__(
        self, num_ops: tuple[int, ...], hidden: int, precision: str, device: torch.device | str, *, chunk: int = 32768
    ) -> None:
        """Check the device and the sizes.

        Args:
            num_ops: operations of each layer, 1..32 each, 1..64 layers.
            hidden: H, a multiple of 16 up to 256.
            precision: `float32` or `bf16`.
            device: a CUDA device.
            chunk: proposals that `reject` looks at in one go; results do not depend on it.

        Raises:
            InputError: for sizes that the kernels do not take, or why the device cannot be used.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
        if chunk < 1:
            raise InputError(f"chunk must be at least 1, got {chunk}")
        self.device = require_device(device)
        self.num_ops = tuple(num_ops)
        self.hidden = hidden
        self.precision = precision
        self._chunk = chunk
        self._bf16 = precision == "bf16"
        self._shape = [len(self.num_ops), max(self.num_ops, default=0), hidden]
        self._num_bytes = call(_core.cuda_weights_bytes, self._shape, self._bf16)
        self._weights: Tensor | None = None

    @property
    def isa(self) -> str:
        """The device's architecture, such as sm_90."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    def load(self, tensors: FilterTensors) -> None:
        """Take over the filter's parameters. A call that is under way ends with those that it began with.

        Args:
            tensors: the weights, on any device.

        Raises:
            InputError: a wrong dtype or shape, or a value that is not finite or beyond 1e15 in magnitude; the old
                weights stay.
        """
        layers, operations, hidden = self._shape
        shapes = {
            "tables": [2, layers, operations, 4 * hidden],
            "recurrent": [2, 4 * hidden, hidden],
            "fc1_weight": [hidden, 2 * hidden],
            "fc1_bias": [hidden],
            "fc2_weight": [2, hidden],
            "fc2_bias": [2],
        }
        names = [field.name for field in fields(FilterTensors)]
        parameters = []
        for name in names:
            tensor: Tensor = getattr(tensors, name)
            if tensor.dtype != torch.float32 or list(tensor.shape) != shapes[name]:
                raise InputError(f"{name} must be float32 {shapes[name]}, got {tensor.dtype} {list(tensor.shape)}")
            parameters.append(tensor.detach().to(self.device).contiguous())
        usable = torch.stack([(tensor.abs() <= MAX_WEIGHT).all() for tensor in parameters]).tolist()
        if not all(usable):
            raise InputError(f"{names[usable.index(False)]} has a value that is NaN or beyond {MAX_WEIGHT:g}")
        addresses = [tensor.data_ptr() for tensor in parameters]
        with torch.cuda.device(self.device):
            where = (index_of(self.device), stream_of(self.device), self._shape, self._bf16)
            weights = memory(self._num_bytes, self.device)
            call(_core.cuda_prepare, *where, list(self.num_ops), addresses, weights.data_ptr())
            torch.cuda.current_stream(self.device).synchronize()  # later calls may come on other streams
        self._weights = weights

    def log_prob_weak(self, paths: Tensor | npt.NDArray[np.integer]) -> Tensor:
        """Log Phi, the log-probability that a path is weak.

        Args:
            paths: operation indices [n, L], an integer tensor on any device or an array; n may be 0.

        Returns:
            float32 [n] on the device.

        Raises:
            InputError: wrong shape or dtype, an operation that its layer lacks, nothing loaded, or a score that is NaN.
        """
        tensor = _as_tensor(paths)
        layers = len(self.num_ops)
        if tensor.ndim != 2 or tensor.shape[1] != layers or tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise InputError(f"paths must be integers [n, {layers}], got {tensor.dtype} {list(tensor.shape)}")
        tensor = tensor.to(self.device)
        if tensor.dtype != torch.uint8:
            # Whatever does not fit in a byte becomes an operation that no layer has.
            tensor = tensor.to(torch.int64)
            tensor = torch.where((tensor < 0) | (tensor > 255), 255, tensor).to(torch.uint8)
        tensor = tensor.contiguous()
        return self._score(tensor, None)

    def log_prob_weak_of_keys(self, keys: Tensor | Numbers) -> Tensor:
        """Log Phi of packed paths.

        Args:
            keys: uint64 (or int64) [n, 2], a tensor on any device or an array.

        Returns:
            float32 [n] on the device.

        Raises:
            InputError: wrong shape or dtype, more than 25 layers, an operation that its layer lacks, nothing loaded, or
                a score that is NaN.
        """
        tensor = _as_tensor(keys)
        if tensor.ndim != 2 or tensor.shape[1] != 2 or tensor.dtype not in (torch.uint64, torch.int64):
            raise InputError(f"keys must be uint64 [n, 2], got {tensor.dtype} {list(tensor.shape)}")
        return self._score(None, tensor.view(torch.int64).to(self.device).contiguous())

    def _score(self, paths: Tensor | None, keys: Tensor | None) -> Tensor:
        weights = self._loaded()
        batch = paths if paths is not None else keys
        n = 0 if batch is None else len(batch)
        scores = torch.empty(n, dtype=torch.float32, device=self.device)
        status = torch.empty(2, dtype=torch.int64, device=self.device)
        with torch.cuda.device(self.device):
            workspace = memory(_core.cuda_score_workspace_bytes(self._shape, n), self.device)
            call(
                _core.cuda_score,
                *self._model(weights),
                0 if paths is None else paths.data_ptr(),
                0 if keys is None else keys.data_ptr(),
                n,
                scores.data_ptr(),
                status.data_ptr(),
                workspace.data_ptr(),
            )
        bad_path, nan_path = status.tolist()
        if bad_path >= 0:
            raise InputError(f"path {bad_path} has an operation that its layer lacks; num_ops is {list(self.num_ops)}")
        if nan_path >= 0:
            raise InputError(f"log Phi of path {nan_path} is NaN: the filter's weights overflow float32")
        return scores

    def reject(
        self,
        allowed: npt.ArrayLike,
        seed: int,
        stream: int,
        start: int,
        wanted: int,
        limit: int,
        threshold: float,
        fallbacks: int,
    ) -> tuple[Numbers, Numbers, int]:
        """Look at proposals `start`, `start + 1`, ... until `wanted` have log Phi <= threshold (Alg. 1, lines 2-5).

        Args:
            allowed: bool [L, N], True where an operation may be drawn.
            seed: of the proposals, 0 .. 2**64 - 1.
            stream: of random numbers, 0 .. 2**32 - 1.
            start: number of the first proposal, 0 .. 2**64 - 1.
            wanted: accepted proposals asked for.
            limit: proposals that may be looked at.
            threshold: accepted where log Phi is at most this.
            fallbacks: rejected proposals to return, at most as many as are missing, if the limit is reached.

        Returns:
            Numbers of the accepted proposals, uint64 ascending; numbers of the rejected ones of lowest (log Phi,
            number), in that order, empty unless the limit was reached; how many proposals were looked at: up to the
            last accepted one, or `limit`.

        Raises:
            InputError: a mask that does not fit the filter, a number out of range, nothing loaded, or a score that is
                NaN.
        """
        weights = self._loaded()
        model = self._model(weights)
        mask = self._mask(allowed)
        check_numbers("reject", seed=(seed, 64), stream=(stream, 32), start=(start, 64))
        check_numbers("reject", wanted=(wanted, 40), limit=(limit, 62), fallbacks=(fallbacks, 40))
        chunk = max(1, min(self._chunk, limit))
        source = (mask.ctypes.data, int(seed), int(stream), int(start))
        accepted = torch.empty(wanted, dtype=torch.int64, device=self.device)
        with torch.cuda.device(self.device):
            index = index_of(self.device)
            workspace = memory(_core.cuda_rejection_workspace_bytes(index, self._shape, chunk), self.device)
            pinned = torch.empty(_core.CUDA_REJECTION_HOST_BYTES, dtype=torch.uint8, pin_memory=True)
            ends = (accepted.data_ptr(), workspace.data_ptr(), pinned.data_ptr())
            bounds = (int(wanted), int(limit), float(threshold), chunk)
            count, proposals = call(_core.cuda_reject, *model, *source, *bounds, *ends)
            missing = min(wanted - count, fallbacks, proposals - count)
            lowest = torch.empty(max(missing, 0), dtype=torch.int64, device=self.device)
            if missing > 0:
                size = _core.cuda_fallback_workspace_bytes(index, self._shape, chunk, missing)
                workspace = memory(size, self.device)
                ends = (missing, lowest.data_ptr(), workspace.data_ptr())
                call(_core.cuda_lowest_rejected, *model, *source, int(limit), float(threshold), chunk, *ends)
        return _numbers(accepted[:count]), _numbers(lowest), proposals

    def _mask(self, allowed: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        mask = as_mask(allowed, "allowed")
        layers, operations, _ = self._shape
        if mask.shape != (layers, operations):
            raise InputError(f"allowed must be [{layers}, {operations}], got {list(mask.shape)}")
        for layer, count in enumerate(self.num_ops):
            if mask[layer, count:].any():
                raise InputError(f"allowed has more operations at layer {layer} than its {count}")
        return mask

    def _model(self, weights: Tensor) -> tuple[int, int, list[int], bool, int]:
        """The arguments that name device, stream and weights."""
        return index_of(self.device), stream_of(self.device), self._shape, self._bf16, weights.data_ptr()

    def _loaded(self) -> Tensor:
        if self._weights is None:
            raise InputError("the filter has no weights yet: call load first")
        return self._weights


class CudaEngineBackend:
    """`CudaBackend` behind the `Backend` protocol of `engine`: arrays in host memory in and out."""

    def __init__(self, num_ops: tuple[int, ...], precision: str, device: torch.device) -> None:
        """Make a backend without weights.

        Raises:
            InputError: why the device cannot be used.
        """
        self._num_ops, self._precision = num_ops, precision
        self._device = require_device(device)
        self._backend: CudaBackend | None = None

    @property
    def isa(self) -> str:
        """The device's architecture, such as sm_90."""
        return self._loaded().isa

    def load(self, tensors: FilterTensors) -> None:
        """Take in weights; see `CudaBackend.load`."""
        backend = self._backend or CudaBackend(self._num_ops, tensors.hidden, self._precision, self._device)
        backend.load(tensors)
        self._backend = backend

    def log_prob_weak(self, paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous paths [n, L]."""
        return _as_array(self._loaded().log_prob_weak(paths))

    def log_prob_weak_of_keys(self, keys: Numbers) -> npt.NDArray[np.float32]:
        """Log Phi of contiguous keys [n, 2]."""
        return _as_array(self._loaded().log_prob_weak_of_keys(keys))

    def reject(self, request: RejectionRequest) -> Rejection:
        """Rejection sampling; see `CudaBackend.reject`."""
        if np.isnan(request.threshold):
            raise InputError("reject: the threshold is NaN")
        return Rejection(
            *self._loaded().reject(
                request.allowed,
                request.seed,
                request.stream,
                request.start,
                request.wanted,
                request.limit,
                request.threshold,
                request.wanted if request.want_fallbacks else 0,
            )
        )

    def _loaded(self) -> CudaBackend:
        if self._backend is None:
            raise InputError("the filter has no weights yet: call load first")
        return self._backend


def _as_tensor(values: Tensor | npt.NDArray[np.integer]) -> Tensor:
    """A tensor of the values; torch warns of arrays that cannot be written to, so those are copied."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _as_array(scores: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = scores.cpu().numpy()
    return array


def _numbers(tensor: Tensor) -> Numbers:
    """Int64 bits on a device as uint64 on the host."""
    return tensor.cpu().numpy().view(np.uint64)
