"""A whole inverted residual (https://arxiv.org/abs/1801.04381), with MixConv and squeeze-and-excitation, in one.

Nothing that is normalised, activated or gated is stored, but the result: each convolution does that to its input on
load, in the backward pass again. Kept are x, the three raw convolution outputs and numbers a channel; where no gradient
is wanted, the expanded tensor is not written to memory either. Gradients go the same way: what comes through the
moments of an output is added where its gradient is loaded.
float32 and bf16 on the CPU run the compiled core, everything else `greedynas_fast.reference.inverted_residual`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from greedynas_fast.errors import InputError
from greedynas_fast.reference import inverted_residual as reference
from greedynas_fast.reference.bn_act import ACTIVATIONS

from . import inverted_residual_core as core
from .bn_core import ready
from .inverted_residual_core import Options
from .mixconv import check as check_mixconv
from .rows import autocast, backend

__all__ = ["Gate", "Norm", "backend", "inverted_residual"]


class Norm(NamedTuple):
    """A batch norm.

    Attributes:
        weight: [C].
        bias: [C].
        eps: added to the variance.
        moments: float32 [2, C], means and biased variances to normalise with, constants to the gradient; None: those of
            the batch.
    """

    weight: Tensor
    bias: Tensor
    eps: float
    moments: Tensor | None = None


class Gate(NamedTuple):
    """A squeeze-and-excitation; see `greedynas_fast.ops.squeeze_excite`.

    Attributes:
        reduce_weight: [R, C] or [R, C, 1, 1].
        reduce_bias: [R].
        expand_weight: [C, R] or [C, R, 1, 1].
        expand_bias: [C].
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        gate: `hard_sigmoid` or `sigmoid`.
    """

    reduce_weight: Tensor
    reduce_bias: Tensor
    expand_weight: Tensor
    expand_bias: Tensor
    activation: str
    gate: str


def inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, Norm] | None,
    depthwise: tuple[Sequence[Tensor], Norm],
    project: tuple[Tensor, Norm],
    gate: Gate | None = None,
    *,
    stride: int = 1,
    padding: str = "symmetric",
    activation: str = "hard_swish",
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """1x1 expand, norm, act; depthwise or MixConv, norm, act; [squeeze-and-excitation]; 1x1 project, norm; [+ x].

    Differentiable once, in x and all parameters. Either all norms have moments or none has.

    Args:
        x: [N, C_in, H, W]; best in channels-last memory, other layouts are copied.
        expand: weight [C, C_in, 1, 1] and norm; None: C is C_in and the block begins with the depthwise convolution.
            A weight [C, C_in / G, 1, 1] is that of a convolution with G groups, here and in `project`.
        depthwise: weights as `greedynas_fast.ops.mixconv` takes them, one [C_g, 1, k, k] a group, and norm.
        project: weight [C_out, C, 1, 1] and norm.
        gate: before the projection.
        stride: of the depthwise convolution, 1 or 2.
        padding: of the depthwise convolution, see `greedynas_fast.ops.mixconv`.
        activation: of the first two norms: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        residual: add x to the result.

    Returns:
        y [N, C_out, ceil(H / stride), ceil(W / stride)] of the dtype of x, or autocast's, and the moments of each
        norm, float32 [2, C] without gradient, from which running statistics can be updated.

    Raises:
        InputError: shapes, dtypes or names that do not fit, or a single value a channel with statistics of the batch.
    """
    x = autocast(x)
    check(x, expand, depthwise, project, stride, padding, activation, residual)
    if backend(x) == "reference":
        options: dict[str, Any] = {"stride": stride, "padding": padding, "activation": activation, "residual": residual}
        return reference.inverted_residual(x, expand, depthwise, project, gate, **options)
    weights, norm2 = depthwise
    weight3, norm3 = project
    weight1, norm1 = (None, Norm(norm2.weight, norm2.bias, 0.0)) if expand is None else expand
    x = x.contiguous(memory_format=torch.channels_last)
    gate_names = ("", "") if gate is None else (gate.activation, gate.gate)
    eps = (norm1.eps, norm2.eps, norm3.eps)
    o = Options(stride, padding, activation, residual, eps, gate_names, norm3.moments is None)
    given = [ready(norm.moments) for norm in (norm1, norm2, norm3) if norm.moments is not None]
    parameters = (
        *((None, None, None) if weight1 is None else (weight1, norm1.weight, norm1.bias)),
        *(norm2.weight, norm2.bias, weight3, norm3.weight, norm3.bias),
        *((None, None, None, None) if gate is None else gate[:4]),
        *weights,
    )
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *parameters)):
        y, *found = _InvertedResidual.apply(x, o, len(given), *given, *parameters)
        return y, found
    y, found, _ = core.forward(x, o, given, parameters, keep=False)
    return y, found


class _InvertedResidual(torch.autograd.Function):
    """Arguments: x, options, how many moments are given, these, and parameters as `inverted_residual_core` has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, o: Options, num_given: int, *tensors: Any) -> tuple[Tensor, ...]:
        given, parameters = list(tensors[:num_given]), tensors[num_given:]
        y, moments, kept = core.forward(x, o, given, parameters, keep=True)
        ctx.num_given = num_given
        ctx.num_kept = len(kept)
        ctx.save_for_backward(x, *kept, *moments, *parameters)
        ctx.options = o
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        o: Options = ctx.options
        num_moments = len(grads) - 1
        num_given: int = ctx.num_given
        x, *rest = ctx.saved_tensors
        kept, rest = rest[: ctx.num_kept], rest[ctx.num_kept :]
        moments, parameters = rest[:num_moments], rest[num_moments:]
        nothing = [None] * (2 + num_given)  # for options and moments
        if grads[0] is None:
            return None, *nothing, *(None for _ in parameters)
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x, *others = core.backward(grad, kept, x, o, moments, parameters)
        return grad_x, *nothing, *others


def check(
    x: Tensor,
    expand: tuple[Tensor, Norm] | None,
    depthwise: tuple[Sequence[Tensor], Norm],
    project: tuple[Tensor, Norm],
    stride: int,
    padding: str,
    activation: str,
    residual: bool,
) -> None:
    """Raise on what the operations that the block is made of would not find, or would name in their own terms.

    Raises:
        InputError: see `inverted_residual`.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"inverted_residual: x: expected a floating [N, C, H, W], got {x.dtype} {list(x.shape)}")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"inverted_residual: activation: expected identity, relu, hard_swish, silu or relu6, got {activation!r}"
        )
    n, in_channels, height, width = x.shape
    weights, norm2 = depthwise
    channels = sum(weight.shape[0] for weight in weights)
    out_channels = project[0].shape[0]
    parts = [("project", project[0], project[1], (out_channels, channels, 1, 1))]
    if expand is not None:
        parts.append(("expand", expand[0], expand[1], (channels, in_channels, 1, 1)))
    elif in_channels != channels:
        raise InputError(
            f"inverted_residual: depthwise: expected {in_channels} channels as x, which is not expanded, got {channels}"
        )
    for name, weight, norm, shape in parts:
        if tuple(weight.shape) != shape and not _is_grouped(weight, shape):
            raise InputError(f"inverted_residual: {name}: expected a weight {list(shape)}, got {list(weight.shape)}")
        _check_norm(name, norm, shape[0])
    _check_norm("depthwise", norm2, channels)
    kernels = [weight.shape[-1] for weight in weights]
    check_mixconv(x.new_empty((0, channels, height, width)), weights, kernels, stride, None, padding)
    given = {norm.moments is not None for _, _, norm, _ in parts} | {norm2.moments is not None}
    if len(given) != 1:
        raise InputError("inverted_residual: moments: expected all norms to have some or none, got both")
    if residual and (stride != 1 or in_channels != out_channels):
        raise InputError(
            f"inverted_residual: residual: expected stride 1 and {in_channels} channels out, "
            f"got stride {stride} and {out_channels}"
        )
    if given == {False} and n * -(-height // stride) * -(-width // stride) == 1:
        raise InputError(
            f"inverted_residual: x: expected more than one value a channel after stride {stride}, got {list(x.shape)}"
        )


def _is_grouped(weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the weight is that of a convolution with groups, where `shape` is that of one without."""
    out_channels, in_channels = shape[:2]
    if weight.ndim != 4 or weight.shape[1] < 1 or in_channels % weight.shape[1] != 0:
        return False
    groups = in_channels // weight.shape[1]
    return out_channels % groups == 0 and tuple(weight.shape) == (out_channels, weight.shape[1], 1, 1)


def _check_norm(name: str, norm: Norm, channels: int) -> None:
    for part, value, shape in (
        ("weight", norm.weight, (channels,)),
        ("bias", norm.bias, (channels,)),
        ("moments", norm.moments, (2, channels)),
    ):
        if value is not None and tuple(value.shape) != shape:
            raise InputError(
                f"inverted_residual: {name}: expected a norm's {part} {list(shape)}, got {list(value.shape)}"
            )
