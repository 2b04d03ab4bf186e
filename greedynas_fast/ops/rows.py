"""What the operations share: who computes, on how many threads, and a tensor [N, C, H, W] as rows of channels."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Literal

import torch
from torch import Tensor

from greedynas_fast import _core

CUDA_VARIABLE = "GREEDYNAS_CUDA_KERNELS"
_FOR_CPU = (torch.float32, torch.bfloat16)
_FOR_CUDA = (*_FOR_CPU, torch.float16)


def backend(x: Tensor, *, on_cuda: bool = False) -> Literal["core", "reference"]:
    """What handles x: the compiled core takes float32 and bf16 on the CPU.

    Args:
        x: the input.
        on_cuda: the operation has CUDA kernels too, also for fp16. They are taken where GREEDYNAS_CUDA_KERNELS=1 asks
            for them: no GPU has run them yet.
    """
    if x.device.type == "cpu":
        return "core" if x.dtype in _FOR_CPU else "reference"
    return "core" if on_cuda and x.is_cuda and x.dtype in _FOR_CUDA and _takes_cuda_kernels() else "reference"


@functools.cache
def _takes_cuda_kernels() -> bool:
    """Whether CUDA kernels are asked for; registers them then. In a build without CUDA each call says so."""
    if os.environ.get(CUDA_VARIABLE, "0") != "1":
        return False
    importlib.import_module("greedynas_fast.ops.cuda_kernels")
    return True


def threads() -> int:
    """Threads of an operation on the CPU: as many as torch has, and at most what GREEDYNAS_NUM_THREADS says."""
    return min(torch.get_num_threads(), _core.num_threads())


def autocast(x: Tensor) -> Tensor:
    """The tensor in the type that torch's autocast lets a convolution compute in; itself where that is off."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def rows_of(x: Tensor) -> tuple[Tensor, int, int]:
    """The tensor itself or a channels-last copy of it, its number of rows N H W, and the elements from row to row.

    A row is what lies at one pixel. Slices of the channels of a channels-last tensor are rows too, with gaps.
    """
    stride = _row_stride(x)
    if stride is None:
        x = x.contiguous(memory_format=torch.channels_last)
        stride = x.shape[1]
    n, _, height, width = x.shape
    return x, n * height * width, stride


def _row_stride(x: Tensor) -> int | None:
    n, channels, height, width = x.shape
    of_n, of_channel, of_height, of_width = x.stride()
    if of_channel != 1 and channels != 1:
        return None
    rows = 1
    stride = channels
    for size, distance in ((width, of_width), (height, of_height), (n, of_n)):
        if size == 1:
            continue
        if rows == 1:
            stride = distance
        elif distance != rows * stride:
            return None
        rows *= size
    return stride if stride >= channels else None
