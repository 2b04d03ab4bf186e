"""Squeeze-and-excitation in as few passes over memory as it can be; https://arxiv.org/abs/1709.01507.

The forward pass reads x twice and writes y; the backward pass reads x and the gradient twice and writes one gradient:
that of the means is added where the gradient of x is made. With `norm_act` the activated tensor is recomputed from x
whenever it is needed. The two products between means and gates are torch's, in float32.
float32 and bf16 on the CPU run the compiled core, everything else `greedynas_fast.reference.squeeze_excite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.reference import squeeze_excite as reference
from greedynas_fast.reference.bn_act import ACTIVATIONS

from . import memory
from .library import define, fake, implement
from .rows import backend, rows_of, threads

__all__ = ["backend", "squeeze_excite"]

_ACTIVATIONS = ("identity", "relu", "hard_swish", "silu", "relu6")
_GATES = ("hard_sigmoid", "sigmoid")
PROLOGUES = {"": 0, "identity": 1, "relu": 2, "hard_swish": 3, "silu": 4, "relu6": 5}  # "": no scale, shift, activation

_LAYER = (
    "Tensor reduce_weight, Tensor reduce_bias, Tensor expand_weight, Tensor expand_bias, Tensor? scale, Tensor? shift, "
    "str activation, str gate, str prologue"
)
define(f"squeeze_excite(Tensor x, {_LAYER}) -> (Tensor, Tensor, Tensor, Tensor)")
define(
    f"squeeze_excite_backward(Tensor grad, Tensor x, Tensor means, Tensor hidden, Tensor logits, {_LAYER}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# All but the last step of the forward pass, and that step alone.
define(f"squeeze(Tensor x, {_LAYER}) -> (Tensor, Tensor, Tensor)")
define("excite(Tensor x, Tensor logits, Tensor? scale, Tensor? shift, str gate, str prologue) -> Tensor")
forward_op = torch.ops.greedynas.squeeze_excite.default
backward_op = torch.ops.greedynas.squeeze_excite_backward.default
excite_op = torch.ops.greedynas.excite.default


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    activation: str = "relu",
    gate: str = "hard_sigmoid",
    norm_act: tuple[Tensor, Tensor, str] | None = None,
) -> Tensor:
    """Gate each channel of a: a * gate(expand(act(reduce(mean of a over H and W)))), where a is x without `norm_act`.

    Args:
        x: [N, C, H, W], floating. Best in channels-last memory (a slice of channels will do); other layouts are copied.
        reduce_weight: [R, C] or [R, C, 1, 1].
        reduce_bias: [R].
        expand_weight: [C, R] or [C, R, 1, 1].
        expand_bias: [C].
        activation: between the two products: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        gate: `hard_sigmoid` or `sigmoid`.
        norm_act: (scale [C], shift [C], activation `identity`, `relu`, `hard_swish`, `silu` or `relu6`) for
            a = activation(x * scale + shift), the form of batch normalisation in evaluation.

    Returns:
        [N, C, H, W] of x's dtype, channels-last from the core.

    Raises:
        InputError: shapes, dtypes or names that do not fit, or images without pixels.
    """
    _check(x, reduce_weight, reduce_bias, expand_weight, expand_bias, activation, gate, norm_act)
    if backend(x, on_cuda=True) == "reference":
        return reference.squeeze_excite(
            x,
            reduce_weight,
            reduce_bias,
            expand_weight,
            expand_bias,
            activation=activation,
            gate=gate,
            norm_act=norm_act,
        )
    scale, shift, prologue = norm_act if norm_act is not None else (None, None, "")
    tensors = (x, reduce_weight, reduce_bias, expand_weight, expand_bias, scale, shift)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        result: Tensor = _SqueezeExcite.apply(*tensors, activation, gate, prologue)
        return result
    y: Tensor = forward_op(*tensors, activation, gate, prologue)[0]
    return y


class _SqueezeExcite(torch.autograd.Function):
    """The two operators joined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layer: Any) -> Tensor:
        y, means, hidden, logits = forward_op(x, *layer)
        ctx.save_for_backward(x, means, hidden, logits, *layer[:6])
        ctx.options = layer[6:]
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients = backward_op(grads[0], *ctx.saved_tensors, *ctx.options)
        needed = ctx.needs_input_grad[:7]
        return (*(g if need else None for g, need in zip(gradients, needed, strict=True)), None, None, None)


def _forward(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, and what `_squeeze` gives."""
    x, _, _ = rows_of(x)
    means, hidden, logits = _squeeze(x, *layer)
    scale, shift, _, gate, prologue = layer[4:]
    return _excite(x, logits, scale, shift, gate, prologue), means, hidden, logits


def _squeeze(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Means [N, C], and before their activations hidden [N, R] and logits [N, C]."""
    reduce_weight, reduce_bias, expand_weight, expand_bias, scale, shift, activation, _, prologue = layer
    means = torch.empty(x.shape[:2], dtype=torch.float32)
    if x.numel() == 0:
        return means, *_outputs_of_products(x, reduce_weight)
    x, _, stride = rows_of(x)
    scale, shift = _vector(scale), _vector(shift)
    core = make_layer(x, scale, shift, prologue)
    core.squeeze(x.data_ptr(), stride, means.data_ptr())
    with torch.autocast("cpu", enabled=False):
        hidden = torch.addmm(reduce_bias.float(), means, _matrix(reduce_weight).t())
        logits = torch.addmm(expand_bias.float(), _activated(hidden, activation), _matrix(expand_weight).t())
    return means, hidden, logits


def _backward(
    grad: Tensor, x: Tensor, means: Tensor, hidden: Tensor, logits: Tensor, *layer: Any
) -> tuple[Tensor, ...]:
    """Gradients of x, the four parameters, scale and shift; empty ones for scale and shift if there are none."""
    parameters, scale, shift, (activation, gate, prologue) = layer[:4], layer[4], layer[5], layer[6:]
    grad_x = memory.image(x, x.shape)
    grad_scale, grad_shift = (torch.empty(0 if scale is None else x.shape[1], dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        zeros = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters]
        return grad_x, *zeros, _like(grad_scale.zero_(), scale), _like(grad_shift.zero_(), shift)
    x, _, stride = rows_of(x)
    grad, _, grad_stride = rows_of(grad)
    scale32, shift32 = _vector(scale), _vector(shift)
    core = make_layer(x, scale32, shift32, prologue)
    grad_gates = torch.empty_like(means)
    inputs = (grad.data_ptr(), grad_stride, x.data_ptr(), stride)
    core.excite_backward(*inputs, grad_gates.data_ptr())
    gates = gates_of(logits, gate)
    with torch.autocast("cpu", enabled=False):
        grad_means, gradients = _backward_of_products(
            grad_gates, gates, means, hidden, logits, parameters, activation, gate
        )
    core.squeeze_backward(
        *inputs,
        gates.data_ptr(),
        grad_means.data_ptr(),
        grad_x.data_ptr(),
        grad_scale.data_ptr(),
        grad_shift.data_ptr(),
    )
    return grad_x, *gradients, _like(grad_scale, scale), _like(grad_shift, shift)


def _backward_of_products(
    grad_gates: Tensor,
    gates: Tensor,
    means: Tensor,
    hidden: Tensor,
    logits: Tensor,
    parameters: Sequence[Tensor],
    activation: str,
    gate: str,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the means [N, C] and of the four parameters."""
    reduce_weight, expand_weight = _matrix(parameters[0]), _matrix(parameters[2])
    aten = torch.ops.aten
    if gate == "sigmoid":
        grad_logits = aten.sigmoid_backward(grad_gates, gates)
    else:
        grad_logits = aten.hardsigmoid_backward(grad_gates, logits)
    grad_hidden = grad_logits @ expand_weight
    if activation == "relu":
        grad_hidden = aten.threshold_backward(grad_hidden, hidden, 0)
    elif activation == "silu":
        grad_hidden = aten.silu_backward(grad_hidden, hidden)
    elif activation == "hard_swish":
        grad_hidden = aten.hardswish_backward(grad_hidden, hidden)
    elif activation == "relu6":
        grad_hidden = aten.hardtanh_backward(grad_hidden, hidden, 0, 6)
    grads = (
        grad_hidden.t() @ means,
        grad_hidden.sum(0),
        grad_logits.t() @ _activated(hidden, activation),
        grad_logits.sum(0),
    )
    shaped = [_like(grad.view(p.shape), p) for grad, p in zip(grads, parameters, strict=True)]
    return (grad_hidden @ reduce_weight).contiguous(), shaped


def _excite(x: Tensor, logits: Tensor, scale: Tensor | None, shift: Tensor | None, gate: str, prologue: str) -> Tensor:
    y = memory.image(x, x.shape)
    if x.numel():
        x, _, stride = rows_of(x)
        scale, shift, gates = _vector(scale), _vector(shift), gates_of(logits, gate)
        make_layer(x, scale, shift, prologue).excite(x.data_ptr(), stride, gates.data_ptr(), y.data_ptr())
    return y


def make_layer(x: Tensor, scale: Tensor | None, shift: Tensor | None, prologue: str) -> _core.SqueezeExcite:
    """What the core needs to know; the tensors must outlive it."""
    n, channels, height, width = x.shape
    return _core.SqueezeExcite(
        n,
        height * width,
        channels,
        x.dtype is torch.bfloat16,
        PROLOGUES[prologue],
        0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(),
        threads(),
    )


def _activated(hidden: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](hidden)


def gates_of(logits: Tensor, gate: str) -> Tensor:
    return logits.sigmoid() if gate == "sigmoid" else torch.nn.functional.hardsigmoid(logits)


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], weight.shape[1]).float()


def _vector(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float().contiguous()


def _like(grad: Tensor, parameter: Tensor | None) -> Tensor:
    return grad if parameter is None else grad.to(parameter.dtype)


def _outputs_of_products(x: Tensor, reduce_weight: Tensor) -> tuple[Tensor, Tensor]:
    n, channels = x.shape[:2]
    hidden = x.new_empty((n, reduce_weight.shape[0]), dtype=torch.float32)
    return hidden, x.new_empty((n, channels), dtype=torch.float32)


implement("squeeze_excite", _forward)
implement("squeeze_excite_backward", _backward)
implement("squeeze", _squeeze)
implement("excite", _excite)


@fake("excite")
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@fake("squeeze_excite")
def _(x: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), *_fake_squeeze(x, *layer)


@fake("squeeze")
def _fake_squeeze(x: Tensor, reduce_weight: Tensor, *layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[:2], dtype=torch.float32), *_outputs_of_products(x, reduce_weight)


@fake("squeeze_excite_backward")
def _(grad: Tensor, x: Tensor, means: Tensor, hidden: Tensor, logits: Tensor, *layer: Any) -> tuple[Tensor, ...]:
    def like(parameter: Tensor | None) -> Tensor:
        return x.new_empty(0, dtype=torch.float32) if parameter is None else parameter.new_empty(parameter.shape)

    return torch.empty_like(x, memory_format=torch.channels_last), *(like(parameter) for parameter in layer[:6])


@register_flop_formula([torch.ops.greedynas.squeeze_excite, torch.ops.greedynas.squeeze])
def _flops(x: Any, reduce_weight: Any, *rest: Any, **named: Any) -> int:
    """Of the two products; two a multiply-add."""
    return 4 * int(x[0]) * int(reduce_weight[0]) * int(reduce_weight[1])


@register_flop_formula(torch.ops.greedynas.squeeze_excite_backward)
def _backward_flops(grad: Any, x: Any, means: Any, hidden: Any, *rest: Any, **named: Any) -> int:
    return 8 * int(x[0]) * int(x[1]) * int(hidden[1])


def _check(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    activation: str,
    gate: str,
    norm_act: tuple[Tensor, Tensor, str] | None,
) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"squeeze_excite: x: expected a floating [N, C, H, W], got {x.dtype} {list(x.shape)}")
    channels = x.shape[1]
    if x.shape[2] * x.shape[3] == 0:
        raise InputError(f"squeeze_excite: x: expected at least one pixel, got {list(x.shape)}")
    width = reduce_weight.shape[0] if reduce_weight.dim() else 0
    for name, weight, shape in (
        ("reduce_weight", reduce_weight, (width, channels)),
        ("expand_weight", expand_weight, (channels, width)),
    ):
        if tuple(weight.shape) not in (shape, (*shape, 1, 1)):
            raise InputError(
                f"squeeze_excite: {name}: expected {list(shape)} or {[*shape, 1, 1]}, got {list(weight.shape)}"
            )
    vectors = [("reduce_bias", reduce_bias, width), ("expand_bias", expand_bias, channels)]
    if norm_act is not None:
        vectors += [("norm_act scale", norm_act[0], channels), ("norm_act shift", norm_act[1], channels)]
        if norm_act[2] not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise InputError(f"squeeze_excite: norm_act activation: expected one of {known}, got {norm_act[2]!r}")
    for name, vector, size in vectors:
        if tuple(vector.shape) != (size,):
            raise InputError(f"squeeze_excite: {name}: expected [{size}], got {list(vector.shape)}")
    for name, value, known_names in (("activation", activation, _ACTIVATIONS), ("gate", gate, _GATES)):
        if value not in known_names:
            raise InputError(f"squeeze_excite: {name}: expected one of {', '.join(known_names)}, got {value!r}")
