"""The operators of batch normalisation over the compiled core (csrc/blocks/bn_act.h): `torch.ops.greedynas.bn_*`.

Moments are float32 [2, C]: means, then biased variances. What users call is in `bn_act` and `inverted_residual`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core

from . import memory
from .library import define, fake, implement
from .rows import rows_of, threads

ACTIVATIONS = {"identity": 0, "relu": 1, "hard_swish": 2, "silu": 3, "relu6": 4}

_LAYER = "Tensor? weight, Tensor? bias, Tensor? residual, float eps, str activation"
define("bn_moments(Tensor x) -> Tensor")
define("bn_update_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor moments, int rows, float share) -> ()")
define(f"bn_act_training(Tensor x, {_LAYER}) -> (Tensor, Tensor)")
define(f"bn_act_forward(Tensor x, Tensor moments, {_LAYER}) -> Tensor")
define(
    f"bn_act_backward(Tensor grad, Tensor x, Tensor moments, {_LAYER}, bool batch_statistics, bool[4] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
# Scale and shift [2, C] of the same normalisation as one multiplication and one addition.
define("bn_affine(Tensor moments, Tensor weight, Tensor bias, float eps) -> Tensor")
# What reaches x through its moments is added to grad, which an operation has computed that applies scale and shift on
# load and takes them for constants, unless they are constants; gives the gradients of weight and bias.
define(
    "bn_through_moments_(Tensor(a!) grad, Tensor x, Tensor moments, Tensor weight, Tensor bias, "
    "Tensor grad_scale_shift, float eps, bool batch_statistics) -> (Tensor, Tensor)"
)
moments_op = torch.ops.greedynas.bn_moments.default
update_op = torch.ops.greedynas.bn_update_.default
training_op = torch.ops.greedynas.bn_act_training.default
forward_op = torch.ops.greedynas.bn_act_forward.default
backward_op = torch.ops.greedynas.bn_act_backward.default
affine_op = torch.ops.greedynas.bn_affine.default
through_moments_op = torch.ops.greedynas.bn_through_moments_.default


def _moments(x: Tensor) -> Tensor:
    channels = x.shape[1]
    if x.numel() == 0:
        return x.new_zeros(2, channels, dtype=torch.float32)
    x, rows, stride = rows_of(x)
    moments = torch.empty((2, channels), dtype=torch.float32)
    addresses = (x.data_ptr(), stride, moments.data_ptr())
    _core.bn_moments(rows, channels, x.dtype is torch.bfloat16, *addresses, threads())
    return moments


def _update(running_mean: Tensor, running_var: Tensor, moments: Tensor, rows: int, share: float) -> None:
    running = (running_mean, running_var)
    if all(value.dtype is torch.float32 and value.is_contiguous() for value in running):
        addresses = (value.data_ptr() for value in running)
        _core.bn_update(rows, moments.shape[1], moments.data_ptr(), share, *addresses)
        return
    mean, variance = moments.double().unbind()
    for value, new in zip(running, (mean, variance * (rows / (rows - 1))), strict=True):
        value.copy_((1 - share) * value.double() + share * new)


def _training(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    moments = torch.empty((2, x.shape[1]), dtype=torch.float32)
    if x.numel() == 0:
        moments.zero_()
    return _normalised(x, moments, True, *layer), moments


def _forward(x: Tensor, moments: Tensor, *layer: Any) -> Tensor:
    return _normalised(x, moments, False, *layer)


def _normalised(
    x: Tensor,
    moments: Tensor,
    batch_statistics: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor:
    """The result; with `batch_statistics` the moments are filled in first."""
    y = memory.image(x, x.shape)
    if x.numel() == 0:
        return y
    x, rows, stride = rows_of(x)
    residual_stride = 0
    if residual is not None:
        residual, _, residual_stride = rows_of(residual)
    weight, bias = _as_float32(weight), _as_float32(bias)
    layer = make_layer(x, rows, moments, weight, bias, residual, eps, activation)
    layer.forward(
        batch_statistics,
        x.data_ptr(),
        stride,
        _address(residual),
        residual_stride,
        y.data_ptr(),
    )
    return y


def _backward(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    batch_statistics: bool,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual; empty ones where not needed."""
    outputs = _outputs(x, needed)
    if x.numel() == 0:
        for output in outputs:
            output.zero_()
        return _as_parameters(outputs, weight, bias)
    x, rows, stride = rows_of(x)
    grad, _, grad_stride = rows_of(grad)
    residual_stride = 0
    if residual is not None:
        residual, _, residual_stride = rows_of(residual)
    weight32, bias32 = _as_float32(weight), _as_float32(bias)
    layer = make_layer(x, rows, moments, weight32, bias32, residual, eps, activation)
    grad_x, grad_weight, grad_bias, grad_residual = outputs
    layer.backward(
        batch_statistics,
        grad.data_ptr(),
        grad_stride,
        x.data_ptr(),
        stride,
        _address(residual),
        residual_stride,
        grad_x.data_ptr(),  # 0 where empty, here and below
        grad_residual.data_ptr(),
        grad_weight.data_ptr(),
        grad_bias.data_ptr(),
    )
    return _as_parameters(outputs, weight, bias)


def _affine(moments: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    scale_shift = torch.empty_like(moments)
    weight, bias = ready(weight), ready(bias)
    addresses = (moments.data_ptr(), _address(weight), _address(bias))
    of_channels = _core.BnAct(1, moments.shape[1], False, 0, False, *addresses, eps, 1)
    of_channels.affine(scale_shift.data_ptr())
    return scale_shift


def _through_moments(
    grad: Tensor,
    x: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_scale_shift: Tensor,
    eps: float,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor]:
    grad_weight, grad_bias = torch.zeros_like(moments[0]), torch.zeros_like(moments[1])
    if x.numel():
        x, rows, stride = rows_of(x)
        weight32, bias32 = ready(weight), ready(bias)
        layer = make_layer(x, rows, moments, weight32, bias32, None, eps, "identity")
        addresses = (grad_scale_shift, grad, grad_weight, grad_bias)
        layer.through_moments(batch_statistics, x.data_ptr(), stride, *(value.data_ptr() for value in addresses))
    return grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def ready(value: Tensor) -> Tensor:
    """The values as the core takes them: float32, without gaps."""
    return value if value.dtype is torch.float32 and value.is_contiguous() else value.float().contiguous()


def _outputs(x: Tensor, needed: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias, need_residual = needed
    channels = x.shape[1]

    def like_x(need: bool) -> Tensor:
        return memory.image(x, x.shape) if need else x.new_empty(0)

    def like_bias(need: bool) -> Tensor:
        return x.new_empty(channels if need else 0, dtype=torch.float32)

    return like_x(need_x or need_residual), like_bias(need_weight), like_bias(need_bias), like_x(need_residual)


def _as_parameters(
    outputs: tuple[Tensor, Tensor, Tensor, Tensor], weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias, grad_residual = outputs
    if weight is not None and weight.dtype is not torch.float32:
        grad_weight = grad_weight.to(weight.dtype)
    if bias is not None and bias.dtype is not torch.float32:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_x, grad_weight, grad_bias, grad_residual


def make_layer(
    x: Tensor,
    rows: int,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
) -> _core.BnAct:
    """What the core needs to know; the tensors must outlive it."""
    return _core.BnAct(
        rows,
        x.shape[1],
        x.dtype is torch.bfloat16,
        ACTIVATIONS[activation],
        residual is not None,
        moments.data_ptr(),
        _address(weight),
        _address(bias),
        eps,
        threads(),
    )


def _as_float32(value: Tensor | None) -> Tensor | None:
    return None if value is None else ready(value)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


for _name, _function in (
    ("bn_moments", _moments),
    ("bn_update_", _update),
    ("bn_act_training", _training),
    ("bn_act_forward", _forward),
    ("bn_act_backward", _backward),
    ("bn_affine", _affine),
    ("bn_through_moments_", _through_moments),
):
    implement(_name, _function)


@fake("bn_moments")
def _(x: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[1]), dtype=torch.float32)


@fake("bn_update_")
def _(*arguments: Any) -> None:
    return None


@fake("bn_act_training")
def _(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
    moments = x.new_empty((2, x.shape[1]), dtype=torch.float32)
    return torch.empty_like(x, memory_format=torch.channels_last), moments


@fake("bn_act_forward")
def _(x: Tensor, moments: Tensor, *layer: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@fake("bn_act_backward")
def _(
    grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _as_parameters(_outputs(x, rest[-1]), weight, bias)


@fake("bn_affine")
def _(moments: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(moments)


@fake("bn_through_moments_")
def _(grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@register_flop_formula(
    [
        torch.ops.greedynas.bn_moments,
        torch.ops.greedynas.bn_update_,
        torch.ops.greedynas.bn_act_training,
        torch.ops.greedynas.bn_act_forward,
        torch.ops.greedynas.bn_act_backward,
        torch.ops.greedynas.bn_affine,
        torch.ops.greedynas.bn_through_moments_,
    ]
)
def _no_flops(*shapes: Any, **named: Any) -> int:
    """0: like torch's own counter, which counts matrix products and convolutions alone."""
    return 0
