"""Tensors of float32 in the core's own memory (csrc/cpu/memory.h), which steps of a training use again and again.

Asked for and given back in each step, large tensors come from the system, which clears every page anew.
"""

from __future__ import annotations

from torch import Tensor
from torch.utils.dlpack import from_dlpack

from greedynas_fast import _core


def flat(floats: int) -> _core.TensorForm:
    """What `empty` makes [floats] of."""
    return _core.TensorForm((floats,), (1,))


def channels_last(n: int, channels: int, height: int, width: int) -> _core.TensorForm:
    """What `empty` makes [N, C, H, W] of, channels-last."""
    row = width * channels
    return _core.TensorForm((n, channels, height, width), (height * row, 1, row, channels))


def empty(form: _core.TensorForm) -> Tensor:
    """A tensor on the CPU; its memory is used again as soon as nothing refers to it."""
    return from_dlpack(form.empty())


def release_memory() -> int:
    """Give to the system what is kept for later tensors, as at the end of a training.

    Nothing has to call this: what is kept and in use is never more than 1.25 times what was in use at some time.

    Returns:
        Bytes.
    """
    _, kept = _core.memory_use()
    _core.release_memory()
    return kept
