"""A whole inverted residual as one call of the compiled core: csrc/blocks/inverted_residual.h. float32 and bf16 on the
CPU.

Parameters are, in this order: expand weight [C, C_in / G, 1, 1], weight and bias of its norm; those of the second norm;
project weight, weight and bias of its norm; the four of the gate. What the block does not have is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from greedynas_fast import _core

from . import memory
from .bn_core import ACTIVATIONS, ready
from .library import define, fake, implement
from .rows import rows_of, threads

# gate: activation and gate, two empty strings without one. moments: [2, C] of the norms, or none at all for those of
# the batch. Gives y; the moments [2, C] of the batch, if they are taken; and with `keep` z1, z2, z3, means, hidden,
# logits and covariance, empty where there is no such thing: what the backward pass needs.
_BLOCK = (
    "Tensor x, Tensor?[] parameters, Tensor[] weights, Tensor[] moments, int stride, str padding, str activation, "
    "bool residual, float[] eps, str[] gate"
)
define(f"inverted_residual({_BLOCK}, bool keep) -> (Tensor, Tensor[], Tensor[])")
# moments are always given here. Gives the gradients of x, of the parameters and of the depthwise weights, empty where
# there is no such parameter.
define(f"inverted_residual_backward(Tensor grad, Tensor[] kept, bool batch_statistics, {_BLOCK}) -> Tensor[]")
forward_op = torch.ops.greedynas.inverted_residual.default
backward_op = torch.ops.greedynas.inverted_residual_backward.default

_Parameters = Sequence[Tensor | None]
NUM_PARAMETERS = 12
NUM_KEPT = 7

# Measured; see `expands_in_caches`.
_LARGE_BYTES = 8 << 20
_ROWS_A_CHANNEL = 16
_LARGE_BYTES_TO_KEEP = 5 << 20
_FEW_CHANNELS = 20


class Parts(NamedTuple):
    """Weights of the 1x1 convolutions whose groups are a tensor each; empty where the weight is one tensor.

    Attributes:
        expand: [C / G, C_in / G, 1, 1] each.
        project: [C_out / G, C / G, 1, 1] each.
    """

    expand: Sequence[Tensor] = ()
    project: Sequence[Tensor] = ()


class Options(NamedTuple):
    """What is not a tensor.

    Attributes:
        stride: of the depthwise convolution.
        padding: the same.
        activation: of the first two norms.
        residual: add x to the result.
        eps: of the three norms.
        gate: its activation and its gate; two empty strings without one.
        batch_statistics: normalise by the moments of the batch.
    """

    stride: int
    padding: str
    activation: str
    residual: bool
    eps: tuple[float, float, float]
    gate: tuple[str, str]
    batch_statistics: bool


def forward(
    x: Tensor, o: Options, given: list[Tensor], parameters: _Parameters, keep: bool
) -> tuple[Tensor, list[Tensor], Sequence[Tensor]]:
    """Run the block.

    Args:
        x: float32 or bf16 [N, C_in, H, W], channels-last.
        o: see `Options`.
        given: moments float32 [2, C] of the norms; none for those of the batch.
        parameters: the twelve, and the depthwise weights.
        keep: whether there will be a backward pass.

    Returns:
        y, the moments of the norms, and with `keep` z1, z2, z3, means, hidden, logits and covariance.
    """
    own, weights = parameters[:NUM_PARAMETERS], parameters[NUM_PARAMETERS:]
    y, found, kept = forward_op(x, own, weights, given, *o[:6], keep)
    return y, given or found, kept


def backward(
    grad: Tensor, kept: Sequence[Tensor], x: Tensor, o: Options, moments: Sequence[Tensor], parameters: _Parameters
) -> tuple[Tensor | None, ...]:
    """Gradients of x and of all parameters, each of its dtype; None where there is no such parameter.

    Args:
        grad: of y, [N, C_out, ..] of the type of x, channels-last.
        kept: as the forward pass gave it.
        x: as the forward pass took it.
        o: as well.
        moments: as the forward pass gave them.
        parameters: as it took them.
    """
    own, weights = parameters[:NUM_PARAMETERS], parameters[NUM_PARAMETERS:]
    grad_x, *found = backward_op(grad, kept, o.batch_statistics, x, own, weights, moments, *o[:6])
    return (grad_x, *(_as_parameter(value, p) for value, p in zip(found, parameters, strict=True)))


def _as_parameter(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if grad is None or parameter is None else grad.to(parameter.dtype)


def expands_in_caches(shape: Sequence[int], expand: Tensor | None, keep: bool, *, bf16: bool = False) -> bool:
    """Whether z1 is never in memory (csrc/blocks/expand_depthwise.h).

    That is faster where z1 is large, and has so many rows that the covariance is small work beside the convolution.
    For a backward pass z1 is made twice, so that it must also take few products.

    Args:
        shape: [N, C_in, H, W] of x.
        expand: weight [C, C_in / G, 1, 1], or None: nothing is expanded.
        keep: whether there will be a backward pass.
        bf16: x is; then z1 is always in memory.
    """
    if expand is None or bf16:
        return False
    batch, in_channels, height, width = shape
    rows = batch * height * width
    if keep and expand.shape[1] > _FEW_CHANNELS:
        return False
    large = rows * expand.shape[0] * 4 >= (_LARGE_BYTES_TO_KEEP if keep else _LARGE_BYTES)
    return large and rows >= _ROWS_A_CHANNEL * in_channels


def make_block(
    shape: Sequence[int],
    parameters: _Parameters,
    weights: Sequence[Tensor],
    o: Options,
    threads: int,
    parts: Parts | None = None,
    *,
    bf16: bool = False,
) -> _core.InvertedResidual:
    """The block as the core takes it, for x [N, C_in, H, W] of this shape and type; the parameters must outlive it.

    Of a weight in parts, the one among the parameters has the shape alone.
    """
    parts = parts or Parts()
    batch, channels, height, width = shape
    expand, _, _, _, _, project, *_ = parameters
    reduce = parameters[8]
    assert project is not None
    middle = sum(weight.shape[0] for weight in weights)
    at = _addresses(parameters)
    in_caches = [expands_in_caches(shape, expand, keep, bf16=bf16) for keep in (False, True)]
    return _core.InvertedResidual(
        (batch, height, width, channels, middle, project.shape[0], o.stride),
        [] if expand is None else _addresses(parts.expand) or [at[0]],
        _addresses(parts.project) or [at[5]],
        [(weight.shape[0], weight.shape[-1], weight.data_ptr()) for weight in weights],
        ((at[1], at[2], o.eps[0]), (at[3], at[4], o.eps[1]), (at[6], at[7], o.eps[2])),
        (at[8], at[9], at[10], at[11]),
        0 if reduce is None else reduce.shape[0],
        (ACTIVATIONS[o.activation], ACTIVATIONS[o.gate[0] or "identity"]),
        (o.residual, o.batch_statistics, o.gate[1] == "sigmoid", *in_caches, bf16, o.padding == "same_upper"),
        (1 if expand is None else channels // expand.shape[1], middle // project.shape[1]),
        threads,
    )


class _Block:
    """The block for an input, and the tensors that it points to."""

    def __init__(self, x: Tensor, parameters: _Parameters, weights: Sequence[Tensor], o: Options) -> None:
        x, _, x_stride = rows_of(x)
        parameters = [None if value is None else ready(value) for value in parameters]
        weights = [ready(weight) for weight in weights]
        self._alive = (x, parameters, weights)
        self.rows = (x.data_ptr(), x_stride)
        self.core = make_block(x.shape, parameters, weights, o, threads(), bf16=x.dtype is torch.bfloat16)


def _forward(
    x: Tensor,
    parameters: _Parameters,
    weights: Sequence[Tensor],
    moments: Sequence[Tensor],
    *options_and_keep: Any,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    *options, keep = options_and_keep
    o = Options._make((*options, not moments))
    y, found, kept = _outputs(x, parameters, weights, moments, o.stride, keep)
    if x.numel() == 0:
        return y, [values.zero_() for values in found], kept
    block = _Block(x, parameters, weights, o)
    normalising = _three(moments or found)
    places = _addresses(kept) if keep else (0,) * NUM_KEPT
    block.core.forward(block.rows, _addresses(normalising), places, y.data_ptr())
    return y, found, kept


def _backward(
    grad: Tensor,
    kept: Sequence[Tensor],
    batch_statistics: bool,
    x: Tensor,
    parameters: _Parameters,
    weights: Sequence[Tensor],
    moments: Sequence[Tensor],
    *options: Any,
) -> list[Tensor]:
    gradients = _gradients(x, parameters, weights)
    if x.numel() == 0:
        return [value.zero_() for value in gradients]
    block = _Block(x, parameters, weights, Options._make((*options, batch_statistics)))
    grad, _, grad_stride = rows_of(grad)
    grad_x, *addresses = _addresses(gradients)
    block.core.backward(
        block.rows,
        _addresses(_three(moments)),
        _addresses(kept),
        (grad.data_ptr(), grad_stride),
        grad_x,
        addresses[:NUM_PARAMETERS],
        addresses[NUM_PARAMETERS:],
        (),
    )
    return gradients


def _gradients(x: Tensor, parameters: _Parameters, weights: Sequence[Tensor]) -> list[Tensor]:
    def like(parameter: Tensor | None) -> Tensor:
        if parameter is None or not parameter.is_contiguous():
            return x.new_empty(0 if parameter is None else parameter.shape, dtype=torch.float32)
        return torch.empty_like(parameter, dtype=torch.float32)  # of its strides: torch copies other gradients

    grad_x = memory.image(x, x.shape)
    return [grad_x, *(like(value) for value in (*parameters, *weights))]


def _outputs(
    x: Tensor, parameters: _Parameters, weights: Sequence[Tensor], moments: Sequence[Tensor], stride: int, keep: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    n, in_channels, height, width = x.shape
    expand, project, reduce = parameters[0], parameters[5], parameters[8]
    assert project is not None
    middle, channels = sum(weight.shape[0] for weight in weights), project.shape[0]
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    y = memory.image(x, (n, channels, out_height, out_width))
    norms = ([] if expand is None else [middle]) + [middle, channels]
    found = [] if moments else [x.new_empty((2, c), dtype=torch.float32) for c in norms]
    if not keep:
        return y, found, []
    in_caches = expands_in_caches(x.shape, expand, keep, bf16=x.dtype is torch.bfloat16)
    z1 = x.new_empty(0) if expand is None or in_caches else memory.image(x, (n, middle, height, width))
    z2, z3 = (memory.image(x, (n, c, out_height, out_width)) for c in (middle, channels))
    hidden = 0 if reduce is None else reduce.shape[0]
    of_gate = [x.new_empty((n, c) if hidden else 0, dtype=torch.float32) for c in (middle, hidden, middle)]
    covariance = x.new_empty((in_channels + 1, in_channels) if in_caches and found else 0, dtype=torch.float32)
    return y, found, [z1, z2, z3, *of_gate, covariance]


def _three(values: Sequence[Tensor]) -> list[Tensor | None]:
    """Those of the three norms; a block that does not expand has no first one."""
    return [*(None for _ in range(3 - len(values))), *values]


def _addresses(values: Sequence[Tensor | None]) -> tuple[int, ...]:
    return tuple(0 if value is None else value.data_ptr() for value in values)


implement("inverted_residual", _forward)
implement("inverted_residual_backward", _backward)


@fake("inverted_residual")
def _(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    x, parameters, weights, moments, stride, *_, keep = arguments
    return _outputs(x, parameters, weights, moments, stride, keep)


@fake("inverted_residual_backward")
def _(*arguments: Any) -> list[Tensor]:
    return _gradients(*arguments[3:6])


def _products(x: Any, parameters: Any, weights: Any, stride: int) -> int:
    """Multiply-adds of the forward pass; the depthwise ones counted as torch does, with those of the padding."""
    n, _, height, width = x
    pixels = int(n) * int(height) * int(width)
    out_pixels = int(n) * ((int(height) - 1) // stride + 1) * ((int(width) - 1) // stride + 1)
    expand, project, reduce = parameters[0], parameters[5], parameters[8]
    total = 0 if expand is None else pixels * int(expand[0]) * int(expand[1])
    total += out_pixels * sum(int(w[0]) * int(w[2]) * int(w[3]) for w in weights)
    total += out_pixels * int(project[0]) * int(project[1])
    return total + (0 if reduce is None else 2 * int(n) * int(reduce[0]) * int(reduce[1]))


@register_flop_formula(torch.ops.greedynas.inverted_residual)
def _flops(x: Any, parameters: Any, weights: Any, moments: Any, stride: int, *rest: Any, **named: Any) -> int:
    """Two a multiply-add."""
    return 2 * _products(x, parameters, weights, stride)


@register_flop_formula(torch.ops.greedynas.inverted_residual_backward)
def _backward_flops(grad: Any, kept: Any, batch_statistics: Any, x: Any, *block: Any, **named: Any) -> int:
    """Both gradients of every product."""
    parameters, weights, _, stride = block[:4]
    return 4 * _products(x, parameters, weights, stride)
