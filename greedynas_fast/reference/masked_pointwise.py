"""Pointwise convolution of one group of samples with a prologue: y = W p, p = act(x * scale + shift) * gate.

The operands of a product have the type of x; everything else is float32 (float64 for a float64 x).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .bn_act import ACTIVATIONS


def pointwise(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "identity",
    gate: Tensor | None = None,
) -> Tensor:
    """[N, I, H, W], weight [O, I], scale and shift [I] or None, gate [N, I] or None -> channels-last [N, O, H, W]."""
    n, _, height, width = x.shape
    p = _rounded(_prologue(x, scale, shift, activation, gate)[2], x)
    y = F.linear(_rows(p), _rounded(weight, x)).to(x.dtype)
    return y.view(n, height, width, weight.shape[0]).permute(0, 3, 1, 2)


def moments(y: Tensor) -> Tensor:
    """Mean and biased variance of each channel of [N, O, H, W]: float32 or float64 [2, O]."""
    rows = _rows(_wide(y))
    mean = rows.mean(0)
    return torch.stack([mean, (rows - mean).square().mean(0)])


def gradient_through_moments(grad: Tensor, grad_moments: Tensor, y: Tensor, moments: Tensor) -> Tensor:
    """The gradient of y [N, O, H, W] with what reaches y through `moments(y)`."""
    count = y.numel() // max(y.shape[1], 1)
    of_mean, of_variance, mean = (v.view(-1, 1, 1) for v in (*grad_moments.unbind(), moments[0]))
    return (_wide(grad) + (of_mean + 2 * of_variance * (_wide(y) - mean)) / count).to(grad.dtype)


def pointwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "identity",
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale and shift [2, I], and of the gate; [2, 0] and [0] if there are none of them."""
    n, channels, height, width = x.shape
    z, a, _ = _prologue(x, scale, shift, activation, gate)
    of_p = _rows(_rounded(grad, x)) @ _rounded(weight, x)
    of_z = of_p.view(n, height, width, channels).permute(0, 3, 1, 2)
    of_norm, of_gate = z.new_empty(2, 0), z.new_empty(0)
    if gate is not None:
        of_gate = (of_z * a).sum((2, 3))
        of_z = of_z * gate[:, :, None, None]
    of_z = _activation_backward(of_z, z, activation)
    of_x = of_z
    if scale is not None:
        of_norm = torch.stack([(of_z * _wide(x)).sum((0, 2, 3)), of_z.sum((0, 2, 3))])
        of_x = of_z * scale.view(-1, 1, 1)
    return of_x.to(x.dtype), of_norm, of_gate


def pointwise_weight_gradient(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "identity",
    gate: Tensor | None = None,
) -> Tensor:
    """Gradient of the weight: float32 or float64 [O, I]."""
    p = _rounded(_prologue(x, scale, shift, activation, gate)[2], x)
    return _rows(_rounded(grad, x)).t() @ _rows(p)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rounded(value: Tensor, x: Tensor) -> Tensor:
    """The value as an operand of a product: rounded to the type of x."""
    return _wide(value.to(x.dtype))


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N H W, C], a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _prologue(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, activation: str, gate: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the activation takes, what it gives, and the operand of the product."""
    z = _wide(x)
    if scale is not None and shift is not None:
        z = z * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    a = ACTIVATIONS[activation](z)
    return z, a, a if gate is None else a * gate[:, :, None, None]


def _activation_backward(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """The gradient of z; hard-swish has the slope 0 at -3 and 1 at 3."""
    if activation == "relu":
        return grad * (z > 0)
    if activation == "hard_swish":
        return grad * torch.where(z <= -3, 0, torch.where(z >= 3, 1, z / 3 + 0.5))
    if activation == "silu":
        s = torch.sigmoid(z)
        return grad * (s * (1 + z * (1 - s)))
    if activation == "relu6":
        return grad * ((z > 0) & (z < 6))
    return grad
