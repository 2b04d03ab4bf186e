"""The op-masked pointwise convolution group by group with `greedynas_fast.reference.masked_pointwise`.

The same three functions as `masked_pointwise_triton`, for the CPU and where there is no Triton. A group's result does
not depend on the other groups. `allow_tf32` has no meaning here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from greedynas_fast.reference import masked_pointwise as reference

from .masked_pointwise_layer import Layer, OutputGradient, Prologue


def forward(
    x: Tensor, bank: Tensor, layer: Layer, prologue: Prologue, want_stats: bool, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    """y, and its moments [2, channels] or [2, 0]."""
    y = layer.y.empty(x.dtype, x.device)
    moments = torch.zeros(2, layer.y.channel_offsets[-1] if want_stats else 0, dtype=bank.dtype, device=x.device)
    for g, x_g, rest in _groups(layer, x, prologue):
        y_g = reference.pointwise(x_g, _weight(layer, bank, g), *rest)
        layer.y.view(y, g).copy_(y_g)
        if want_stats:
            moments[:, _channels_out(layer, g)] = reference.moments(y_g)
    return y, moments


def data_gradient(
    of_y: OutputGradient, x: Tensor, bank: Tensor, layer: Layer, prologue: Prologue, sums: bool, allow_tf32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale and shift [2, channels] and of the gate; with nothing in the last two if not wanted."""
    grad_x = layer.x.empty(x.dtype, x.device)
    normed, gated = sums and prologue.scale is not None, sums and prologue.gate is not None
    grad_norm = torch.zeros(2, layer.x.channel_offsets[-1] if normed else 0, dtype=bank.dtype, device=x.device)
    grad_gate = torch.empty(layer.x.gate_offsets[-1] if gated else 0, dtype=bank.dtype, device=x.device)
    for g, x_g, rest in _groups(layer, x, prologue):
        of_x, of_norm, of_gate = reference.pointwise_backward(
            _gradient(layer, of_y, g), x_g, _weight(layer, bank, g), *rest
        )
        layer.x.view(grad_x, g).copy_(of_x)
        if normed:
            grad_norm[:, layer.x.channel_offsets[g] : layer.x.channel_offsets[g + 1]] = of_norm
        if gated:
            layer.x.gates(grad_gate, g).copy_(of_gate)
    return grad_x, grad_norm, grad_gate


def add_weight_gradient(
    bank_grad: Tensor, of_y: OutputGradient, x: Tensor, layer: Layer, prologue: Prologue, allow_tf32: bool
) -> None:
    """Add the gradients of the weights to the gradient of the bank, in place, in the order of the groups."""
    for g, x_g, rest in _groups(layer, x, prologue):
        _weight(layer, bank_grad, g).add_(reference.pointwise_weight_gradient(_gradient(layer, of_y, g), x_g, *rest))


def _groups(layer: Layer, x: Tensor, prologue: Prologue) -> Iterator[tuple[int, Tensor, tuple[Any, ...]]]:
    """Each live group, its x, and its prologue as the reference takes it."""
    scale, shift, activation, gate = prologue
    for g in layer.live:
        yield (
            g,
            layer.x.view(x, g),
            (
                None if scale is None else layer.x.channels(scale, g),
                None if shift is None else layer.x.channels(shift, g),
                activation,
                None if gate is None else layer.x.gates(gate, g),
            ),
        )


def _weight(layer: Layer, bank: Tensor, g: int) -> Tensor:
    out, channels = layer.y.widths[g], layer.x.widths[g]
    return bank[layer.weight_offsets[g] :][: out * channels].view(out, channels)


def _channels_out(layer: Layer, g: int) -> slice:
    return slice(layer.y.channel_offsets[g], layer.y.channel_offsets[g + 1])


def _gradient(layer: Layer, of_y: OutputGradient, g: int) -> Tensor:
    """The gradient of a group's y, with what reaches it through the moments."""
    grad = layer.y.view(of_y.grad, g)
    if of_y.grad_moments is None or of_y.y is None or of_y.moments is None:
        return grad
    channels = _channels_out(layer, g)
    return reference.gradient_through_moments(
        grad, of_y.grad_moments[:, channels], layer.y.view(of_y.y, g), of_y.moments[:, channels]
    )
