"""An inverted residual from the operations of its layers, forward and backward: for bf16, and for empty tensors.

Arguments and results are those of `inverted_residual_core`. In names, z1, z2 and z3 are the raw outputs of the
convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import bn_core as bn
from .inverted_residual_core import Options, three
from .mixconv import backward_op as mixconv_backward_op
from .mixconv import forward_op as mixconv_op
from .pointwise import backward_op as pointwise_backward_op
from .pointwise import forward_op as pointwise_op
from .squeeze_excite import backward_op as gate_backward_op
from .squeeze_excite import gates_of, squeeze_op


def forward(
    x: Tensor, o: Options, given: list[Tensor], parameters: Sequence[Any], keep: bool
) -> tuple[Tensor, list[Tensor], Sequence[Tensor | None]]:
    """The result, the moments of the norms, and what the backward pass needs; see `inverted_residual_core.forward`."""
    weight1, gamma1, beta1, gamma2, beta2, weight3, gamma3, beta3 = parameters[:8]
    gate, weights = parameters[8:12], parameters[12:]
    kernels = _kernel_sizes(weights)
    moments1, moments2, moments3 = three(given)
    z1 = None
    if weight1 is None:
        z2, _ = mixconv_op(x, weights, kernels, o.stride, None, None, "none", False)
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
    return y, [m for m in (moments1, moments2, moments3) if m is not None], (z1, z2, z3, means, hidden, logits)


def backward(
    grad: Tensor,
    kept: Sequence[Tensor | None],
    x: Tensor,
    o: Options,
    moments: Sequence[Tensor],
    parameters: Sequence[Any],
) -> tuple[Tensor | None, ...]:
    """Gradients of x and the parameters; see `inverted_residual_core.backward`."""
    z1, z2, z3, means, hidden, logits = kept
    weight1, gamma1, beta1, gamma2, beta2, weight3, gamma3, beta3 = parameters[:8]
    gate, weights = parameters[8:12], parameters[12:]
    moments1, moments2, moments3 = three(moments)
    assert z2 is not None
    assert moments2 is not None
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
        *(grad_x, grad_weight1, grad_gamma1, grad_beta1, grad_gamma2, grad_beta2),
        *(grad_weight3, grad_gamma3, grad_beta3),
        *grad_gate,
        *grad_weights,
    )


def _kernel_sizes(weights: Sequence[Tensor]) -> list[int]:
    return [weight.shape[-1] for weight in weights]


def _gates(logits: Tensor | None, o: Options) -> Tensor | None:
    return None if logits is None else gates_of(logits, o.gate[1])


def _as_parameters(known: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients [2, C] as those of a norm's weight and bias."""
    if known is None:
        return None, None
    grad_weight, grad_bias = known.unbind()
    return grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)
