"""What every caller of the compiled CUDA kernels needs: a device that can run them, its stream, memory from torch."""

from __future__ import annotations

import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError


def require_device(device: torch.device | str | int) -> torch.device:
    """The CUDA device that `device` means, with its index, if the kernels can run there.

    Args:
        device: a CUDA device; without an index, torch's current one.

    Returns:
        The device, with an index.

    Raises:
        InputError: not a CUDA device, or why it cannot be used: a build without CUDA, torch without CUDA, no driver, no
            such device, a GPU that is too old.
    """
    wanted = torch.device(device)
    if wanted.type != "cuda":
        raise InputError(f"device must be a CUDA device, got {wanted}")
    if not _core.build_info()["cuda"]:
        raise InputError(
            "this installation was built without CUDA: put nvcc on the PATH and install again with "
            "`pip install . -C cmake.define.GREEDYNAS_CUDA=ON`, or use the device cpu"
        )
    if not torch.cuda.is_available():
        raise InputError(
            f"torch {torch.__version__} finds no CUDA device: it needs an NVIDIA GPU, a driver and a CUDA build"
        )
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    reason = _core.cuda_reason_against(index)
    if reason:
        raise InputError(reason)
    return torch.device("cuda", index)


def index_of(device: torch.device) -> int:
    """Index of a device from `require_device`."""
    return int(device.index)


def stream_of(device: torch.device) -> int:
    """Torch's current stream of the device as the integer that the core takes."""
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


def memory(num_bytes: int, device: torch.device) -> Tensor:
    """Uninitialised uint8 [max(num_bytes, 1)] from torch's caching allocator, aligned to 256 bytes or more."""
    return torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=device)
