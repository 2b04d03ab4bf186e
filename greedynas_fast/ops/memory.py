"""Tensors in the core's own memory (csrc/cpu/memory.h), which steps of a training use again and again.

Asked for and given back in each step, large tensors come from the system, which clears every page anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from greedynas_fast import _core


def flat(floats: int) -> _core.TensorForm:
    """What `empty` makes float32 [floats] of."""
    return _core.TensorForm((floats,), (1,))


def channels_last(n: int, channels: int, height: int, width: int, *, bf16: bool = False) -> _core.TensorForm:
    """What `empty` makes float32 or bf16 [N, C, H, W] of, channels-last."""
    row = width * channels
    return _core.TensorForm((n, channels, height, width), (height * row, 1, row, channels), bf16)


def empty(form: _core.TensorForm) -> Tensor:
    """A tensor on the CPU; its memory is used again as soon as nothing refers to it."""
    return from_dlpack(form.empty())


def image(like: Tensor, size: Sequence[int]) -> Tensor:
    """An empty tensor [N, C, H, W], channels-last, of the type and on the device of another one.

    Its memory is the core's where that has some for it, else torch's.
    """
    ours = type(like) is Tensor and like.device.type == "cpu" and like.dtype in (torch.float32, torch.bfloat16)
    if ours and 0 not in size:
        n, channels, height, width = size
        return empty(channels_last(n, channels, height, width, bf16=like.dtype is torch.bfloat16))
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def release_memory() -> int:
    """Give to the system what is kept for later tensors, as at the end of a training.

    Nothing has to call this: what is in use and kept is never more than twice the most that was in use at one time.

    Returns:
        How much it was, in bytes.
    """
    _, kept = _core.memory_use()
    _core.release_memory()
    return kept
