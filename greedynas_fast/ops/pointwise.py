"""The 1x1 convolution with what stands before and after it; the operators `torch.ops.greedynas.pointwise*`.

Norm, activation and gate are applied to blocks of x in the caches just before they are multiplied, and the moments of a
block of results are taken while it is there. Each is one call of the compiled core, csrc/blocks/pointwise.h: float32
and bf16 on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.reference import pointwise as reference

from . import bn_core as bn
from . import memory
from .library import define, fake, implement
from .mixconv import check_norm_act
from .rows import autocast, backend, rows_of, threads
from .squeeze_excite import PROLOGUES

# weight: [C_out, C_in / groups, 1, 1], groups as torch's convolutions have them; its shape says how many there are.
# What is read is a = act(x * scale + shift) * gates: with scale_shift [2, C] and the activation `prologue`, else "";
# gates: [N, C]. Gives y and its moments [2, C_out], empty if they are not wanted.
_INPUT = "Tensor x, Tensor weight, Tensor? scale_shift, str prologue, Tensor? gates"
define(f"pointwise({_INPUT}, bool want_moments) -> (Tensor, Tensor)")
# grad: of y; with moments of y, of a batch norm (weight, eps) that y goes through, whose own gradients `known`
# [2, C_out], of weight and bias, have been computed before; without these, moments are constants. scaled: grad has been
# multiplied by the norm's scale. Gives the gradients of x, weight and scale_shift: with gates, or without scale_shift,
# the first is that of a, plus `add`, and the last one is empty.
define(
    "pointwise_backward(Tensor grad, Tensor? y, Tensor? moments, Tensor? norm_weight, float eps, Tensor? known, "
    f"bool scaled, {_INPUT}, Tensor? add) -> (Tensor, Tensor, Tensor)"
)
forward_op = torch.ops.greedynas.pointwise.default
backward_op = torch.ops.greedynas.pointwise_backward.default


def pointwise(x: Tensor, weight: Tensor, norm_act: tuple[Tensor, Tensor, str] | None = None) -> Tensor:
    """Convolve with kernels of 1x1, at stride 1.

    Differentiable once, in x, the weight, scale and shift; both passes read x once, and activate it then.

    Args:
        x: [N, C_in, H, W], floating. Best in channels-last memory (a slice of channels will do); others are copied.
        weight: [C_out, C_in / G, 1, 1] for G groups, float32 or of the dtype of x.
        norm_act: (scale [C_in], shift [C_in], activation `identity`, `relu`, `hard_swish`, `silu` or `relu6`): then
            activation(x * scale + shift) is convolved.

    Returns:
        [N, C_out, H, W] of the dtype of x, or autocast's, channels-last from the core.

    Raises:
        InputError: shapes, dtypes, devices or an activation that do not fit.
    """
    x = autocast(x)
    _check(x, weight, norm_act)
    if backend(x) == "reference":
        return reference.pointwise(x, weight, norm_act)
    scale, shift, prologue = (None, None, "") if norm_act is None else norm_act
    scale_shift = None if scale is None or shift is None else torch.stack((scale.float(), shift.float()))
    y: Tensor = _Pointwise.apply(x, weight, scale_shift, prologue)
    return y


def _check(x: Tensor, weight: Tensor, norm_act: tuple[Tensor, Tensor, str] | None) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"pointwise: x must be floating point [N, C, H, W], got {x.dtype} {list(x.shape)}")
    channels = x.shape[1]
    fits = weight.ndim == 4 and weight.shape[2:] == (1, 1) and weight.shape[1] > 0 and channels % weight.shape[1] == 0
    if not fits or weight.shape[0] % (channels // weight.shape[1]) != 0:
        raise InputError(f"pointwise: weight must be [C_out, {channels} / G, 1, 1], got {list(weight.shape)}")
    if weight.dtype not in (torch.float32, x.dtype):
        raise InputError(f"pointwise: weight must be float32 or {x.dtype} as x, got {weight.dtype}")
    if weight.device != x.device:
        raise InputError(f"pointwise: weight is on {weight.device}, x on {x.device}")
    if norm_act is not None:
        check_norm_act("pointwise", x, *norm_act)


class _Pointwise(torch.autograd.Function):
    """The two operators joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale_shift: Tensor | None, prologue: str) -> Tensor:
        ctx.save_for_backward(x, weight, scale_shift)
        ctx.prologue = prologue
        y: Tensor = forward_op(x, weight, scale_shift, prologue, None, False)[0]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale_shift = ctx.saved_tensors
        norm = (None, None, None, 0.0, None, False)
        found = backward_op(grad, *norm, x, weight, scale_shift, ctx.prologue, None, None)
        return *(g if need else None for g, need in zip(found, ctx.needs_input_grad[:3], strict=True)), None


def _forward(
    x: Tensor, weight: Tensor, scale_shift: Tensor | None, prologue: str, gates: Tensor | None, want_moments: bool
) -> tuple[Tensor, Tensor]:
    y, moments = _outputs(x, weight, want_moments)
    if x.numel() == 0:
        return y, moments.zero_()
    x, rows, stride = rows_of(x)
    matrix = _matrix(weight)
    core = _layer(x, rows, stride, matrix, scale_shift, prologue, gates)
    core.forward(y.data_ptr(), moments.data_ptr())  # 0 where empty
    return y, moments


def _backward(
    grad: Tensor,
    y: Tensor | None,
    moments: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    known: Tensor | None,
    scaled: bool,
    x: Tensor,
    weight: Tensor,
    scale_shift: Tensor | None,
    prologue: str,
    gates: Tensor | None,
    add: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(x, weight, scale_shift, gates)
    if x.numel() == 0:
        for value in grads:
            value.zero_()
        return grads
    x, rows, stride = rows_of(x)
    grad, _, grad_stride = rows_of(grad)
    add_stride = 0
    if add is not None:
        add, _, add_stride = rows_of(add)
    matrix = _matrix(weight)
    core = _layer(x, rows, stride, matrix, scale_shift, prologue, gates)
    norm_weight = None if norm_weight is None else bn.ready(norm_weight)
    grad_x, grad_weight, grad_scale_shift = grads
    sums = grad_weight if weight.dtype is torch.float32 else torch.empty_like(grad_weight, dtype=torch.float32)
    core.backward(
        grad.data_ptr(),
        grad_stride,
        _address(y),
        _address(moments),
        _address(norm_weight),
        eps,
        _address(known),
        scaled,
        _address(add),
        add_stride,
        grad_x.data_ptr(),
        grad_scale_shift.data_ptr(),
        sums.data_ptr(),
    )
    if sums is not grad_weight:
        grad_weight.copy_(sums)
    return grads


def _layer(
    x: Tensor,
    rows: int,
    stride: int,
    matrix: Tensor,
    scale_shift: Tensor | None,
    prologue: str,
    gates: Tensor | None,
) -> _core.Pointwise:
    """What the core needs to know; the tensors must outlive it."""
    return _core.Pointwise(
        rows,
        x.shape[1],
        matrix.shape[0],
        x.data_ptr(),
        stride,
        PROLOGUES[prologue],
        _address(scale_shift),
        _address(gates),
        x.shape[2] * x.shape[3],
        matrix.data_ptr(),
        threads(),
        x.shape[1] // matrix.shape[1],
        x.dtype is torch.bfloat16,
    )


def _matrix(weight: Tensor) -> Tensor:
    """[C_out, C_in / groups] as the core takes it; the products round it to the type of x."""
    return bn.ready(weight.reshape(weight.shape[0], weight.shape[1]))


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def _outputs(x: Tensor, weight: Tensor, want_moments: bool) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    channels = weight.shape[0]
    y = memory.image(x, (n, channels, height, width))
    return y, x.new_empty((2, channels) if want_moments else 0, dtype=torch.float32)


def _gradients(
    x: Tensor, weight: Tensor, scale_shift: Tensor | None, gates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    through_prologue = scale_shift is not None and gates is None
    return (
        memory.image(x, x.shape),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        x.new_empty((2, x.shape[1]) if through_prologue else 0, dtype=torch.float32),
    )


implement("pointwise", _forward)
implement("pointwise_backward", _backward)


@fake("pointwise")
def _(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _outputs(x, weight, rest[-1])


@fake("pointwise_backward")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, scale_shift, _, gates, _ = arguments[7:]
    return _gradients(x, weight, scale_shift, gates)


@register_flop_formula(torch.ops.greedynas.pointwise)
def _flops(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    """Two a multiply-add."""
    return 2 * int(x[0]) * int(x[2]) * int(x[3]) * int(weight[0]) * int(weight[1])


@register_flop_formula(torch.ops.greedynas.pointwise_backward)
def _backward_flops(*arguments: Any, **named: Any) -> int:
    x, weight = arguments[7:9]
    return 2 * _flops(x, weight)
