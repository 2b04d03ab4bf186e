"""Pointwise (1x1) convolution of a batch of several paths: each group of samples has its own weights and widths.

    y_g = act(x_g * scale_g + shift_g) * gate_g, times W_g transposed

Masked groups take no part: no work, no memory, no gradient. On CUDA one launch of a Triton kernel serves all groups;
elsewhere, and where there is no Triton, `greedynas_fast.reference.masked_pointwise` runs group by group.

The prologue is recomputed from x wherever it is needed: x, y (for the moments) and vectors are all that is kept.
Moments of y are differentiable: batch normalisation is `scale = weight * (variance + eps).rsqrt()`,
`shift = bias - mean * scale` in plain torch between two of these layers, and autograd does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast.errors import InputError

from . import masked_pointwise_eager, masked_pointwise_triton
from .library import define, fake, implement
from .masked_pointwise_layer import ACTIVATIONS, Layer, OutputGradient, Prologue, layer_of
from .ragged import Ragged
from .triton_kernels import backend

__all__ = ["backend", "masked_pointwise"]

_LAYER = (
    "Tensor? scale, Tensor? shift, Tensor? gate, int[] weight_offsets, int[] samples, int[] size, int[] widths_in, "
    "int[] widths_out, str activation, bool allow_tf32"
)
_OF_Y = "Tensor grad, Tensor? y, Tensor? moments, Tensor? grad_moments"
define(f"masked_pointwise(Tensor x, Tensor bank, {_LAYER}, bool want_stats) -> (Tensor, Tensor)")
# Gradients of x, of scale and shift [2, channels], of the gate; the last two only with `sums`.
define(f"masked_pointwise_data({_OF_Y}, Tensor x, Tensor bank, {_LAYER}, bool sums) -> (Tensor, Tensor, Tensor)")
define(f"masked_pointwise_weight(Tensor(a!) bank_grad, {_OF_Y}, Tensor x, {_LAYER}) -> ()")
forward_op = torch.ops.greedynas.masked_pointwise.default
data_op = torch.ops.greedynas.masked_pointwise_data.default
weight_op = torch.ops.greedynas.masked_pointwise_weight.default


def masked_pointwise(
    x: Tensor,
    bank: Tensor,
    weight_offsets: Sequence[int],
    ragged_in: Ragged,
    ragged_out: Ragged,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "identity",
    gate: Tensor | None = None,
    bank_grad: Tensor | None = None,
    want_stats: bool = False,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Convolve each group of a ragged activation with its own weights.

    Args:
        x: flat [ragged_in.numel], float32, bfloat16 or float16 (on the CPU also float64).
        bank: flat [n], float32 (float64 with such an x): the parameter bank. Weights are rounded to x's type on load.
        weight_offsets: where W_g, row-major [widths_out[g], widths_in[g]], begins in the bank, one a group. Groups that
            share an operation have the same offset; that of a masked group is not looked at.
        ragged_in: shape of x.
        ragged_out: shape of y; samples, height and width as ragged_in, and width 0 for the same groups.
        scale: flat [channels in of all groups] with `shift`, for the prologue; None for 1 and 0.
        shift: as `scale`.
        activation: of the prologue: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        gate: flat [ragged_in.gate_offsets[-1]], one a sample and channel; None for 1.
        bank_grad: float32 [n] that the backward pass adds the gradients of the weights to, in place, the way
            `ParameterBank.grad` holds them; autograd then sees none for `bank`. Without it the gradient of `bank` is a
            dense tensor of the bank's size, if `bank` requires one: right for tests, wasteful for a supernet.
        want_stats: also compute the moments of y.
        allow_tf32: let float32 products run on tensor cores with 10 bits of mantissa; for CUDA.

    Returns:
        y, flat [ragged_out.numel] of x's type, undefined between groups; and float32 [2, channels out of all groups]:
        mean and biased variance of each group's y as it is stored (0 for a group without samples), or [2, 0].

    Raises:
        InputError: shapes, types, offsets or names that do not fit.
    """
    if not torch.compiler.is_compiling():  # the operators look at the shapes again, where nothing is traced
        _check(x, bank, weight_offsets, ragged_in, ragged_out, scale, shift, activation, gate, bank_grad)
    wide = bank.dtype
    scale, shift, gate = (None if v is None else v.to(wide).contiguous() for v in (scale, shift, gate))
    shapes = (
        tuple(weight_offsets), ragged_in.samples, (ragged_in.height, ragged_in.width), ragged_in.widths,
        ragged_out.widths, activation, allow_tf32,
    )  # fmt: skip
    tensors = (x.contiguous(), bank, scale, shift, gate)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if torch.is_grad_enabled() and bank_grad is not None and not needs_grad:
        # Autograd must call the backward pass even if nothing but the bank's gradient is wanted.
        tensors = (tensors[0], bank.detach().requires_grad_(), *tensors[2:])
        needs_grad = True
    if needs_grad:
        result: tuple[Tensor, Tensor] = _MaskedPointwise.apply(*tensors, bank_grad, shapes, want_stats)
        return result
    y, moments = forward_op(*tensors, *shapes, want_stats)
    return y, moments


class _MaskedPointwise(torch.autograd.Function):
    """The three operators joined."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bank: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        gate: Tensor | None,
        bank_grad: Tensor | None,
        shapes: tuple[Any, ...],
        want_stats: bool,
    ) -> tuple[Tensor, Tensor]:
        y, moments = forward_op(x, bank, scale, shift, gate, *shapes, want_stats)
        kept = (y, moments) if want_stats else (None, None)
        ctx.save_for_backward(x, bank, scale, shift, gate, *kept)
        # Not among the saved tensors: it is written to before this layer's turn comes.
        ctx.bank_grad, ctx.shapes = bank_grad, shapes
        ctx.set_materialize_grads(False)
        if not want_stats:
            ctx.mark_non_differentiable(moments)
        return y, moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, bank, scale, shift, gate, y, moments = ctx.saved_tensors
        bank_grad = ctx.bank_grad
        grad, grad_moments = grads
        if grad is None and grad_moments is None:
            return (None,) * 8
        need_x, need_bank, need_scale, need_shift, need_gate = ctx.needs_input_grad[:5]
        if grad is None:
            grad = torch.zeros_like(y)
        if grad_moments is None:
            y = moments = None
        of_y = (grad.contiguous(), y, moments, None if grad_moments is None else grad_moments.contiguous())
        vectors = (scale, shift, gate, *ctx.shapes)
        of_x = of_scale = of_shift = of_gate = of_bank = None
        sums = need_scale or need_shift or need_gate
        if need_x or sums:
            of_x, of_norm, of_gate = data_op(*of_y, x, bank, *vectors, sums)
            if sums and scale is not None:
                of_scale, of_shift = of_norm.unbind()
        if bank_grad is not None:
            weight_op(bank_grad, *of_y, x, *vectors)
        elif need_bank:
            of_bank = torch.zeros_like(bank)
            weight_op(of_bank, *of_y, x, *vectors)
        return (
            of_x if need_x else None,
            of_bank,
            of_scale if need_scale else None,
            of_shift if need_shift else None,
            of_gate if need_gate else None,
            None,
            None,
            None,
        )


def _split(arguments: Sequence[Any]) -> tuple[Layer, Prologue, bool]:
    """The arguments that `_LAYER` names."""
    scale, shift, gate, weight_offsets, samples, size, widths_in, widths_out, activation, allow_tf32 = arguments
    layer = layer_of(samples, size, widths_in, widths_out, weight_offsets)
    return layer, Prologue(scale, shift, activation, gate), allow_tf32


def _back_end(x: Tensor) -> Any:
    return masked_pointwise_triton if backend(x) == "triton" else masked_pointwise_eager


# The device of x is made current; torch takes the -1 of a CPU tensor for none.
def _forward(x: Tensor, bank: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    layer, prologue, allow_tf32 = _split(arguments[:-1])
    with torch.cuda.device(x.get_device()):
        y, moments = _back_end(x).forward(x, bank, layer, prologue, arguments[-1], allow_tf32)
    return y, moments


def _data(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    of_y, (x, bank), sums = OutputGradient(*arguments[:4]), arguments[4:6], arguments[-1]
    layer, prologue, allow_tf32 = _split(arguments[6:-1])
    with torch.cuda.device(x.get_device()):
        of_x, of_norm, of_gate = _back_end(x).data_gradient(of_y, x, bank, layer, prologue, sums, allow_tf32)
    return of_x, of_norm, of_gate


def _weight_gradient(bank_grad: Tensor, *arguments: Any) -> None:
    of_y, x = OutputGradient(*arguments[:4]), arguments[4]
    layer, prologue, allow_tf32 = _split(arguments[5:])
    with torch.cuda.device(x.get_device()):
        _back_end(x).add_weight_gradient(bank_grad, of_y, x, layer, prologue, allow_tf32)


for _key in ("CPU", "CUDA"):
    implement("masked_pointwise", _forward, _key)
    implement("masked_pointwise_data", _data, _key)
    implement("masked_pointwise_weight", _weight_gradient, _key)


@fake("masked_pointwise")
def _fake_forward(x: Tensor, bank: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    layer, _, _ = _split(arguments[:-1])
    channels = layer.y.channel_offsets[-1] if arguments[-1] else 0
    return x.new_empty(layer.y.numel), bank.new_empty(2, channels)


@fake("masked_pointwise_data")
def _fake_data(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    (x, bank), sums = arguments[4:6], arguments[-1]
    layer, prologue, _ = _split(arguments[6:-1])
    norm_channels = layer.x.channel_offsets[-1] if sums and prologue.scale is not None else 0
    gate_values = layer.x.gate_offsets[-1] if sums and prologue.gate is not None else 0
    return x.new_empty(layer.x.numel), bank.new_empty(2, norm_channels), bank.new_empty(gate_values)


@fake("masked_pointwise_weight")
def _fake_weight_gradient(bank_grad: Tensor, *arguments: Any) -> None:
    return None


@register_flop_formula(torch.ops.greedynas.masked_pointwise)
def _forward_flops(x: Any, bank: Any, *arguments: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * _split(arguments[:-1])[0].macs


@register_flop_formula(torch.ops.greedynas.masked_pointwise_data)
def _data_flops(*arguments: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * _split(arguments[6:-1])[0].macs


@register_flop_formula(torch.ops.greedynas.masked_pointwise_weight)
def _weight_flops(bank_grad: Any, *arguments: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * _split(arguments[5:])[0].macs


def _check(
    x: Tensor,
    bank: Tensor,
    weight_offsets: Sequence[int],
    ragged_in: Ragged,
    ragged_out: Ragged,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    gate: Tensor | None,
    bank_grad: Tensor | None,
) -> None:
    name = "masked_pointwise"
    image = (ragged_in.height, ragged_in.width)
    if (ragged_out.samples, ragged_out.height, ragged_out.width) != (ragged_in.samples, *image):
        raise InputError(f"{name}: expected equal samples and size in and out, got {ragged_in} and {ragged_out}")
    layer = layer_of(ragged_in.samples, image, ragged_in.widths, ragged_out.widths, weight_offsets)
    if x.shape != (layer.x.numel,) or not x.is_floating_point():
        raise InputError(f"{name}: x: expected floating [{layer.x.numel}], got {x.dtype} {list(x.shape)}")
    wide = torch.promote_types(x.dtype, torch.float32)
    if bank.dim() != 1 or bank.dtype != wide or not bank.is_contiguous() or len(bank) < layer.weights_end:
        raise InputError(
            f"{name}: bank: expected contiguous {wide} of at least {layer.weights_end} elements, "
            f"got {bank.dtype} {list(bank.shape)}"
        )
    if (scale is None) != (shift is None):
        raise InputError(f"{name}: expected both scale and shift or neither, got one of them")
    channels, gates = layer.x.channel_offsets[-1], layer.x.gate_offsets[-1]
    for what, value, size in (("scale", scale, channels), ("shift", shift, channels), ("gate", gate, gates)):
        if value is not None and (value.shape != (size,) or not value.is_floating_point()):
            raise InputError(f"{name}: {what}: expected floating [{size}], got {value.dtype} {list(value.shape)}")
    if bank_grad is not None and (bank_grad.shape != bank.shape or bank_grad.dtype != wide):
        raise InputError(
            f"{name}: bank_grad: expected {wide} {list(bank.shape)} like bank, "
            f"got {bank_grad.dtype} {list(bank_grad.shape)}"
        )
    if bank_grad is not None and not bank_grad.is_contiguous():
        raise InputError(f"{name}: bank_grad: expected a contiguous tensor")
    if activation not in ACTIVATIONS:
        raise InputError(f"{name}: activation: expected identity, relu, hard_swish, silu or relu6, got {activation!r}")
    devices = {t.device for t in (x, bank, scale, shift, gate, bank_grad) if t is not None}
    if len(devices) > 1:
        raise InputError(f"{name}: expected all tensors on one device, got {', '.join(sorted(map(str, devices)))}")
