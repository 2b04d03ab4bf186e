"""A whole inverted residual (https://arxiv.org/abs/1801.04381), with MixConv and squeeze-and-excitation, in one.

Nothing that is normalised or activated is kept: the depthwise convolution normalises and activates its input on load,
and the backward pass computes again what the projection read. Kept are x, the three raw convolution outputs and numbers
a channel. The 1x1 convolutions are torch's matrix products.
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
from .mixconv import backward_op as mixconv_backward_op
from .mixconv import check as check_mixconv
from .mixconv import forward_op as mixconv_op
from .rows import autocast, backend
from .squeeze_excite import backward_op as gate_backward_op
from .squeeze_excite import excite_op
from .squeeze_excite import forward_op as gate_op

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
    y, *moments = _InvertedResidual.apply(
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
    return y, moments


class _InvertedResidual(torch.autograd.Function):
    """Arguments: x, options, three moments, twelve parameters (1: expand, 2: depthwise, 3: project), depthwise weights.

    In names, z1, z2 and z3 are the raw outputs of the convolutions, a2 is what the projection reads.
    """

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
        weight1, gamma1, beta1, gamma2, beta2, weight3, gamma3, beta3 = parameters[:8]
        gate, weights = parameters[8:12], parameters[12:]
        kernels = _kernel_sizes(weights)
        if weight1 is None:
            z1 = x
            z2, _ = mixconv_op(x, weights, kernels, o.stride, None, None, "none", False)
        else:
            z1 = _product(x, _matrix(weight1).t())
            moments1 = bn.moments_op(z1) if moments1 is None else moments1
            scale, shift = bn.affine_op(moments1, gamma1, beta1, o.eps[0])
            z2, _ = mixconv_op(z1, weights, kernels, o.stride, scale, shift, o.activation, False)
        means = hidden = logits = None
        if gate[0] is None:
            if moments2 is None:
                a2, moments2 = bn.training_op(z2, gamma2, beta2, None, o.eps[1], o.activation)
            else:
                a2 = bn.forward_op(z2, moments2, gamma2, beta2, None, o.eps[1], o.activation)
        else:
            moments2 = bn.moments_op(z2) if moments2 is None else moments2
            scale, shift = bn.affine_op(moments2, gamma2, beta2, o.eps[1])
            a2, means, hidden, logits = gate_op(z2, *gate, scale, shift, *o.gate, o.activation)
        z3 = _product(a2, _matrix(weight3).t())
        layer3 = (gamma3, beta3, x if o.residual else None, o.eps[2], "identity")
        if moments3 is None:
            y, moments3 = bn.training_op(z3, *layer3)
        else:
            y = bn.forward_op(z3, moments3, *layer3)
        ctx.save_for_backward(
            *(x, None if weight1 is None else z1, z2, z3, moments1, moments2, moments3, means, hidden, logits),
            *parameters,
        )
        ctx.options = o
        ctx.set_materialize_grads(False)
        moments = [m for m in (moments1, moments2, moments3) if m is not None]
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
        needed = (True, True, True, False)
        layer3 = (gamma3, beta3, None, o.eps[2], "identity", o.batch_statistics, needed)
        grad_z3, grad_gamma3, grad_beta3, _ = bn.backward_op(grad, z3, moments3, *layer3)
        layer2 = (gamma2, beta2, None, o.eps[1], o.activation)
        grad_gate: Sequence[Tensor | None] = (None,) * 4
        if gate[0] is None:
            a2 = bn.forward_op(z2, moments2, *layer2)
            grad_weight3, grad_a2 = _product_backward(grad_z3, a2, weight3)
            grad_z2, grad_gamma2, grad_beta2, _ = bn.backward_op(
                grad_a2, z2, moments2, *layer2, o.batch_statistics, needed
            )
        else:
            scale_shift = bn.affine_op(moments2, gamma2, beta2, o.eps[1])
            scale, shift = scale_shift
            a2 = excite_op(z2, logits, scale, shift, o.gate[1], o.activation)
            grad_weight3, grad_a2 = _product_backward(grad_z3, a2, weight3)
            grad_z2, *grad_gate, grad_scale, grad_shift = gate_backward_op(
                grad_a2, z2, means, hidden, logits, *gate, scale, shift, *o.gate, o.activation
            )
            grad_scale_shift = torch.stack((grad_scale, grad_shift))
            grad_gamma2, grad_beta2 = bn.through_moments_op(
                grad_z2, z2, moments2, gamma2, beta2, grad_scale_shift, o.eps[1], o.batch_statistics
            )
        del a2, grad_a2
        grad_weight1 = grad_gamma1 = grad_beta1 = None
        kernels = _kernel_sizes(weights)
        residual_grad = grad if o.residual else None
        if weight1 is None:
            grad_x, grad_weights, _ = mixconv_backward_op(
                grad_z2, None, None, x, weights, kernels, o.stride, None, None, "none", (True, True, False)
            )
            grad_x = grad_x if residual_grad is None else grad_x.add_(residual_grad)
        else:
            scale, shift = bn.affine_op(moments1, gamma1, beta1, o.eps[0])
            grad_z1, grad_weights, grad_scale_shift = mixconv_backward_op(
                grad_z2, None, None, z1, weights, kernels, o.stride, scale, shift, o.activation, (True, True, True)
            )
            grad_gamma1, grad_beta1 = bn.through_moments_op(
                grad_z1, z1, moments1, gamma1, beta1, grad_scale_shift, o.eps[0], o.batch_statistics
            )
            grad_weight1, grad_x = _product_backward(grad_z1, x, weight1, residual_grad)
        return (
            *(grad_x, None, None, None, None),
            *(grad_weight1, grad_gamma1, grad_beta1, grad_gamma2, grad_beta2, grad_weight3, grad_gamma3, grad_beta3),
            *grad_gate,
            *grad_weights,
        )


def _kernel_sizes(weights: Sequence[Tensor]) -> list[int]:
    return [weight.shape[-1] for weight in weights]


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W], channels-last -> [N H W, C], the same memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_rows`: of the batch and size of `like`, with channels of its own."""
    n, _, height, width = like.shape
    return rows.view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], weight.shape[1])


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """[N, C_in, H, W] times [C_in, C_out] at every pixel."""
    return _images(_rows(x) @ matrix, x)


def _product_backward(grad: Tensor, x: Tensor, weight: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradients of the weight and of x of a 1x1 convolution, the latter plus `add`."""
    rows = _rows(grad)
    grad_x = rows @ _matrix(weight) if add is None else torch.addmm(_rows(add), rows, _matrix(weight))
    # The transposed product is faster where the weight is tall: its rows are then the contiguous ones.
    inputs = _rows(x)
    tall = weight.shape[0] > weight.shape[1]
    grad_weight = (inputs.t() @ rows).t().contiguous() if tall else rows.t() @ inputs
    return grad_weight.view(weight.shape), _images(grad_x, x)


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
        if tuple(weight.shape) != shape:
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
