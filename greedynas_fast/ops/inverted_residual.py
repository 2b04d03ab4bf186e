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

from . import bn_core as bn
from .expand_depthwise import forward_op as expand_depthwise_op
from .expand_depthwise import moments_op as expanded_moments_op
from .expand_depthwise import worthwhile
from .mixconv import backward_op as mixconv_backward_op
from .mixconv import check as check_mixconv
from .mixconv import forward_op as mixconv_op
from .pointwise import backward_op as pointwise_backward_op
from .pointwise import forward_op as pointwise_op
from .rows import autocast, backend
from .squeeze_excite import backward_op as gate_backward_op
from .squeeze_excite import gates_of, squeeze_op

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
        activation: `identity`, `relu`, `hard_swish` or `silu`.
        gate: `hard_sigmoid` or `sigmoid`.
    """

    reduce_weight: Tensor
    reduce_bias: Tensor
    expand_weight: Tensor
    expand_bias: Tensor
    activation: str
    gate: str


class _Options(NamedTuple):
    stride: int
    activation: str
    residual: bool
    eps: tuple[float, float, float]
    gate: tuple[str, str]
    batch_statistics: bool


def inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, Norm] | None,
    depthwise: tuple[Sequence[Tensor], Norm],
    project: tuple[Tensor, Norm],
    gate: Gate | None = None,
    *,
    stride: int = 1,
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
        activation: of the first two norms: `identity`, `relu`, `hard_swish` or `silu`.
        residual: add x to the result.

    Returns:
        y [N, C_out, ceil(H / stride), ceil(W / stride)] of the dtype of x, or autocast's, and the moments of each
        norm, float32 [2, C] without gradient, from which running statistics can be updated.

    Raises:
        InputError: shapes, dtypes or names that do not fit, or a single value a channel with statistics of the batch.
    """
    x = autocast(x)
    _check(x, expand, depthwise, project, stride, activation, residual)
    options: dict[str, Any] = {"stride": stride, "activation": activation, "residual": residual}
    if backend(x) == "reference":
        return reference.inverted_residual(x, expand, depthwise, project, gate, **options)
    weights, norm2 = depthwise
    weight3, norm3 = project
    weight1, norm1 = (None, Norm(norm2.weight, norm2.bias, 0.0)) if expand is None else expand
    arguments = (
        x.contiguous(memory_format=torch.channels_last),
        _Options(
            stride,
            activation,
            residual,
            (norm1.eps, norm2.eps, norm3.eps),
            ("", "") if gate is None else (gate.activation, gate.gate),
            norm3.moments is None,
        ),
        *(norm1.moments, norm2.moments, norm3.moments),
        *((None, None, None) if weight1 is None else (weight1.to(x.dtype), norm1.weight, norm1.bias)),
        *(norm2.weight, norm2.bias, weight3.to(x.dtype), norm3.weight, norm3.bias),
        *((None, None, None, None) if gate is None else gate[:4]),
        *weights,
    )
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in arguments):
        y, *found = _InvertedResidual.apply(*arguments)
        return y, found
    y, found, _ = _compute(*arguments, keep=False)
    return y, found


def _compute(
    x: Tensor,
    o: _Options,
    moments1: Tensor | None,
    moments2: Tensor | None,
    moments3: Tensor | None,
    *parameters: Any,
    keep: bool,
) -> tuple[Tensor, list[Tensor], tuple[Tensor | None, ...]]:
    """The result, its moments, and with `keep` what the backward pass needs; the arguments are `_InvertedResidual`'s.

    In names, z1, z2 and z3 are the raw outputs of the convolutions.
    """
    weight1, gamma1, beta1, gamma2, beta2, weight3, gamma3, beta3 = parameters[:8]
    gate, weights = parameters[8:12], parameters[12:]
    kernels = _kernel_sizes(weights)
    z1 = None
    if weight1 is None:
        z2, _ = mixconv_op(x, weights, kernels, o.stride, None, None, "none", False)
    elif not keep and worthwhile(x, weight1):
        moments1 = expanded_moments_op(x, weight1) if moments1 is None else moments1
        affine1 = bn.affine_op(moments1, gamma1, beta1, o.eps[0])
        wanted = moments2 is None
        z2, found = expand_depthwise_op(x, weight1, affine1, weights, kernels, o.stride, o.activation, wanted)
        moments2 = found if moments2 is None else moments2
    else:
        z1, found = pointwise_op(x, weight1, None, "", None, moments1 is None)
        moments1 = found if moments1 is None else moments1
        scale, shift = bn.affine_op(moments1, gamma1, beta1, o.eps[0])
        z2, _ = mixconv_op(z1, weights, kernels, o.stride, scale, shift, o.activation, False)
    moments2 = bn.moments_op(z2) if moments2 is None else moments2
    affine2 = bn.affine_op(moments2, gamma2, beta2, o.eps[1])
    means = hidden = logits = None
    if gate[0] is not None:
        means, hidden, logits = squeeze_op(z2, *gate, *affine2, *o.gate, o.activation)
    z3, found = pointwise_op(z2, weight3, affine2, o.activation, _gates(logits, o), moments3 is None)
    moments3 = found if moments3 is None else moments3
    layer3 = (gamma3, beta3, x if o.residual else None, o.eps[2], "identity")
    y = bn.forward_op(z3, moments3, *layer3)
    moments = [m for m in (moments1, moments2, moments3) if m is not None]
    return y, moments, (x, z1, z2, z3, moments1, moments2, moments3, means, hidden, logits)


class _InvertedResidual(torch.autograd.Function):
    """Arguments: x, options, three moments, twelve parameters (1: expand, 2: depthwise, 3: project), and weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        o: _Options,
        moments1: Tensor | None,
        moments2: Tensor | None,
        moments3: Tensor | None,
        *parameters: Any,
    ) -> tuple[Tensor, ...]:
        y, moments, kept = _compute(x, o, moments1, moments2, moments3, *parameters, keep=True)
        ctx.save_for_backward(*kept, *parameters)
        ctx.options = o
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        o: _Options = ctx.options
        x, z1, z2, z3, moments1, moments2, moments3, means, hidden, logits, *parameters = ctx.saved_tensors
        weight1, gamma1, beta1, gamma2, beta2, weight3, gamma3, beta3 = parameters[:8]
        gate, weights = parameters[8:12], parameters[12:]
        grad = grads[0]
        if grad is None:
            return (None,) * (5 + len(parameters))
        grad = grad.contiguous(memory_format=torch.channels_last)
        layer3 = (gamma3, beta3, None, o.eps[2], "identity", False, (False, True, True, False))
        _, grad_gamma3, grad_beta3, _ = bn.backward_op(grad, z3, moments3, *layer3)
        known3 = torch.stack((grad_gamma3, grad_beta3)).float() if o.batch_statistics else None
        affine2 = bn.affine_op(moments2, gamma2, beta2, o.eps[1])
        grad_z2, grad_weight3, grad_affine2 = pointwise_backward_op(
            *(grad, z3, moments3, gamma3, o.eps[2], known3, False),
            *(z2, weight3, affine2, o.activation, _gates(logits, o), None),
        )
        grad_gate: Sequence[Tensor | None] = (None,) * 4
        if gate[0] is not None:
            grad_z2, *grad_gate, grad_scale, grad_shift = gate_backward_op(
                grad_z2, z2, means, hidden, logits, *gate, *affine2, *o.gate, o.activation
            )
            grad_affine2 = torch.stack((grad_scale, grad_shift))
        known2 = bn.known_op(moments2, grad_affine2, o.eps[1])
        # What comes through the moments of z2 is added where the depthwise convolution reads the gradient.
        statistics: tuple[Tensor | None, Tensor | None] = (None, None)
        if o.batch_statistics:
            rows = z2.numel() // z2.shape[1]
            statistics = (bn.statistics_gradient_op(moments2, gamma2, known2, o.eps[1], rows), z2)
        grad_weight1 = known1 = None
        kernels = _kernel_sizes(weights)
        add = grad if o.residual else None
        if weight1 is None:
            grad_x, grad_weights, _ = mixconv_backward_op(
                grad_z2, *statistics, x, weights, kernels, o.stride, None, None, "none", (True, True, False)
            )
            grad_x = grad_x if add is None else grad_x.add_(add)
        else:
            scale, shift = bn.affine_op(moments1, gamma1, beta1, o.eps[0])
            grad_z1, grad_weights, grad_affine1 = mixconv_backward_op(
                grad_z2, *statistics, z1, weights, kernels, o.stride, scale, shift, o.activation, (True, True, True)
            )
            known1 = bn.known_op(moments1, grad_affine1, o.eps[0])
            norm1 = (moments1, gamma1, o.eps[0], known1 if o.batch_statistics else None, True)
            grad_x, grad_weight1, _ = pointwise_backward_op(grad_z1, z1, *norm1, x, weight1, None, "", None, add)
        grad_gamma1, grad_beta1 = _as_parameters(known1, gamma1, beta1)
        grad_gamma2, grad_beta2 = _as_parameters(known2, gamma2, beta2)
        return (
            *(grad_x, None, None, None, None),
            *(grad_weight1, grad_gamma1, grad_beta1, grad_gamma2, grad_beta2, grad_weight3, grad_gamma3, grad_beta3),
            *grad_gate,
            *grad_weights,
        )


def _kernel_sizes(weights: Sequence[Tensor]) -> list[int]:
    return [weight.shape[-1] for weight in weights]


def _gates(logits: Tensor | None, o: _Options) -> Tensor | None:
    return None if logits is None else gates_of(logits, o.gate[1])


def _as_parameters(known: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients [2, C] as those of a norm's weight and bias."""
    if known is None:
        return None, None
    grad_weight, grad_bias = known.unbind()
    return grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _check(
    x: Tensor,
    expand: tuple[Tensor, Norm] | None,
    depthwise: tuple[Sequence[Tensor], Norm],
    project: tuple[Tensor, Norm],
    stride: int,
    activation: str,
    residual: bool,
) -> None:
    """What the operations that the block is made of would not find, or would name in their own terms."""
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"inverted_residual: x: expected a floating [N, C, H, W], got {x.dtype} {list(x.shape)}")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"inverted_residual: activation: expected identity, relu, hard_swish or silu, got {activation!r}"
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
    check_mixconv(x.new_empty((0, channels, height, width)), weights, _kernel_sizes(weights), stride, None)
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
