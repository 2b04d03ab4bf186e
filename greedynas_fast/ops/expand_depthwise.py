"""The first half of an inverted residual where nothing is kept for a backward pass: csrc/blocks/expand_depthwise.h.

The expanded tensor, the largest of a block, never goes to memory: its moments come from the covariance of x, and some
images at a time are expanded, normalised, activated and convolved in the caches. float32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core

from .library import define, fake, implement
from .mixconv import make_call, new_outputs
from .rows import rows_of, threads

_LARGE_BYTES = 8 << 20
_ROWS_A_CHANNEL = 16

# Moments [2, C] of the 1x1 convolution of x with weight [C, C_in, 1, 1], which is not computed.
define("expanded_moments(Tensor x, Tensor weight) -> Tensor")
# Its depthwise convolution after act(. * scale + shift), and the moments [2, C] of the result, empty if not wanted.
define(
    "expand_depthwise(Tensor x, Tensor weight, Tensor scale_shift, Tensor[] weights, int[] kernel_sizes, int stride, "
    "str activation, bool want_moments) -> (Tensor, Tensor)"
)
moments_op = torch.ops.greedynas.expanded_moments.default
forward_op = torch.ops.greedynas.expand_depthwise.default


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether this is faster than one convolution after the other.

    The expanded tensor must be too large for the caches (measured: it gains from 8 MiB), and the covariance small work
    beside the convolution, which has no groups.
    """
    if weight.shape[1] != x.shape[1]:
        return False
    rows = x.numel() // max(x.shape[1], 1)
    large = rows * weight.shape[0] * x.element_size() >= _LARGE_BYTES
    return x.dtype is torch.float32 and large and rows >= _ROWS_A_CHANNEL * x.shape[1]


def _moments(x: Tensor, weight: Tensor) -> Tensor:
    channels = weight.shape[0]
    moments = torch.empty((2, channels), dtype=torch.float32)
    x, rows, stride = rows_of(x)
    matrix = weight.reshape(channels, -1).contiguous()
    workspace = torch.empty(_core.expanded_moments_floats(rows, x.shape[1], channels), dtype=torch.float32)
    places = (x.data_ptr(), stride, matrix.data_ptr(), workspace.data_ptr(), moments.data_ptr())
    _core.expanded_moments(rows, x.shape[1], channels, *places, threads())
    return moments


def _forward(
    x: Tensor,
    weight: Tensor,
    scale_shift: Tensor,
    weights: Sequence[Tensor],
    kernel_sizes: Sequence[int],
    stride: int,
    activation: str,
    want_moments: bool,
) -> tuple[Tensor, Tensor]:
    y, moments = _outputs(x, weight, stride, want_moments)
    x, _, row = rows_of(x)
    matrix = weight.reshape(weight.shape[0], -1).contiguous()
    weights = [part.contiguous() for part in weights]
    scale, shift = scale_shift.unbind()
    call = make_call(x, weights, kernel_sizes, stride, activation, scale, shift)
    workspace = torch.empty(_core.expand_depthwise_floats(call, x.shape[1]), dtype=torch.float32)
    places = (x.data_ptr(), row, matrix.data_ptr(), workspace.data_ptr(), y.data_ptr(), moments.data_ptr())
    _core.expand_depthwise(call, x.shape[1], *places, threads())
    return y, moments


def _outputs(x: Tensor, weight: Tensor, stride: int, want_moments: bool) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    y, _ = new_outputs((n, weight.shape[0], height, width), x, stride, False)
    return y, x.new_empty((2, weight.shape[0]) if want_moments else 0)


implement("expanded_moments", _moments)
implement("expand_depthwise", _forward)


@fake("expanded_moments")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((2, weight.shape[0]))


@fake("expand_depthwise")
def _(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(x, weight, rest[-3], rest[-1])


@register_flop_formula(torch.ops.greedynas.expanded_moments)
def _moments_flops(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Of the covariance and the quadratic forms; two a multiply-add."""
    return 2 * int(x[1]) ** 2 * (int(x[0]) * int(x[2]) * int(x[3]) + int(weight[0]))


@register_flop_formula(torch.ops.greedynas.expand_depthwise)
def _flops(x: Any, weight: Any, scale_shift: Any, weights: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """Of both convolutions, the depthwise one counted as torch does: with the products of the padding."""
    expand = int(x[0]) * int(x[2]) * int(x[3]) * int(weight[0]) * int(weight[1])
    n, _, height, width = out_shape[0]
    return 2 * (expand + int(n) * int(height) * int(width) * sum(int(w[0]) * int(w[2]) * int(w[3]) for w in weights))
