"""What moves channels in a ShuffleNetV2 unit (https://arxiv.org/abs/1807.11164): shuffle and split, concatenation.

float32 and bf16 on the CPU run the compiled core (csrc/blocks/shuffle.h), one pass over memory each way; everything
else runs `greedynas_fast.reference.shuffle`. Values are moved as they are: both give the same bits. The concatenation
is torch's own, which is one pass too where its inputs are channels-last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.reference import shuffle as reference
from greedynas_fast.reference.shuffle import channel_shuffle

from . import memory
from .library import define, fake, implement
from .rows import backend, rows_of, threads

__all__ = ["backend", "channel_shuffle", "shuffle_concat", "shuffle_split"]

define("shuffle_split(Tensor x) -> (Tensor, Tensor)")
define("shuffle_merge(Tensor kept, Tensor moved) -> Tensor")
split_op = torch.ops.greedynas.shuffle_split.default
merge_op = torch.ops.greedynas.shuffle_merge.default


def shuffle_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Interleave the two halves of the channels and divide the result in halves again.

    Shuffled, channel `2 i + h` is channel `h C / 2 + i` of x. Differentiable once.

    Args:
        x: [N, C, H, W] with even C. Channels-last memory (a slice of channels will do) is used as it is, other layouts
            are copied.

    Returns:
        kept and moved, [N, C / 2, H, W] of x's dtype: the first and the second half of the shuffled channels. From the
        core both are channels-last without gaps.

    Raises:
        InputError: x is not [N, C, H, W], or C is odd or 0.
    """
    if x.dim() != 4:
        raise InputError(f"shuffle_split: x: expected [N, C, H, W], got {list(x.shape)}")
    if x.shape[1] % 2 or x.shape[1] == 0:
        raise InputError(f"shuffle_split: x: expected an even number of channels, 2 or more, got {x.shape[1]}")
    if backend(x) == "reference":
        return reference.shuffle_split(x)
    kept: Tensor
    moved: Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        kept, moved = _Split.apply(x)
    else:
        kept, moved = split_op(x)
    return kept, moved


def shuffle_concat(kept: Tensor, y: Tensor) -> Tensor:
    """Put the channels of y behind those of kept. Gradients are slices of that of the result, not copies.

    Args:
        kept: [N, A, H, W]; layouts as for `shuffle_split`.
        y: [N, B, H, W], of the dtype and device of kept.

    Returns:
        [N, A + B, H, W]; channels-last in float32 and bf16 on the CPU.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together.
    """
    if kept.dim() != 4 or y.dim() != 4:
        raise InputError(f"shuffle_concat: expected two [N, C, H, W], got {list(kept.shape)} and {list(y.shape)}")
    if (kept.shape[0], *kept.shape[2:]) != (y.shape[0], *y.shape[2:]):
        raise InputError(
            f"shuffle_concat: y: expected the images, rows and columns of kept {list(kept.shape)}, got {list(y.shape)}"
        )
    if kept.dtype != y.dtype or kept.device != y.device:
        raise InputError(
            f"shuffle_concat: y: expected {kept.dtype} on {kept.device} as kept, got {y.dtype} on {y.device}"
        )
    if backend(kept) == "reference":
        return reference.shuffle_concat(kept, y)
    # Other layouts and single channels, which have two, might make torch.cat choose another one.
    result = torch.cat((rows_of(kept)[0], rows_of(y)[0]), dim=1)
    return result.contiguous(memory_format=torch.channels_last)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = split_op(x)
        return kept, moved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return merge_op(*grads)  # type: ignore[no-any-return]


def _new(like: Tensor, channels: int) -> Tensor:
    n, _, height, width = like.shape
    size = (n, channels, height, width)
    return memory.image(like, size)


def _split_cpu(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[1] // 2
    kept, moved = _new(x, half), _new(x, half)
    if x.numel():
        x, rows, stride = rows_of(x)
        _core.shuffle_split(
            rows, half, x.element_size(), x.data_ptr(), stride, kept.data_ptr(), moved.data_ptr(), threads()
        )
    return kept, moved


def _merge_cpu(kept: Tensor, moved: Tensor) -> Tensor:
    half = kept.shape[1]
    x = _new(kept, 2 * half)
    if x.numel():
        kept, rows, kept_stride = rows_of(kept)
        moved, _, moved_stride = rows_of(moved)
        _core.shuffle_merge(
            rows,
            half,
            x.element_size(),
            kept.data_ptr(),
            kept_stride,
            moved.data_ptr(),
            moved_stride,
            x.data_ptr(),
            threads(),
        )
    return x


implement("shuffle_split", _split_cpu)
implement("shuffle_merge", _merge_cpu)


@fake("shuffle_split")
def _split_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return _new(x, x.shape[1] // 2), _new(x, x.shape[1] // 2)


@fake("shuffle_merge")
def _merge_fake(kept: Tensor, moved: Tensor) -> Tensor:
    return _new(kept, 2 * kept.shape[1])


@register_flop_formula([torch.ops.greedynas.shuffle_split, torch.ops.greedynas.shuffle_merge])
def _flops(*args: Any, **kwargs: Any) -> int:
    """Values are moved, nothing is computed."""
    return 0
