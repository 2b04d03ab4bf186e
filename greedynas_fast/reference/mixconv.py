"""MixConv: depthwise convolution with a kernel size a group of channels (https://arxiv.org/abs/1907.09595)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .bn_act import ACTIVATIONS


def mixconv(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    kernel_sizes: Sequence[int],
    stride: int = 1,
    norm_act: tuple[torch.Tensor, torch.Tensor, str] | None = None,
    want_stats: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The definition in plain torch. Types below float32 are computed in float32 and rounded once, at the end.

    Args:
        x: [N, C, H, W], floating point.
        weights: one [C_g, 1, k, k] a group of consecutive channels.
        kernel_sizes: the odd k of each group; the padding is k // 2.
        stride: of all groups.
        norm_act: scale [C], shift [C] and the name of an activation: then act(x * scale + shift) is convolved, padded
            with zeros after the activation.
        want_stats: return statistics too.

    Returns:
        y [N, C, H', W'] of the dtype of x; with `want_stats` also [2, C]: sum and sum of squares of each channel of y,
        float64 for float64 and float32 otherwise.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(dtype)
    if norm_act is not None:
        scale, shift, activation = norm_act
        values = ACTIVATIONS[activation](values * scale.to(dtype)[:, None, None] + shift.to(dtype)[:, None, None])
    parts = torch.split(values, [weight.shape[0] for weight in weights], dim=1)
    outputs = [
        F.conv2d(part, weight.to(dtype), stride=stride, padding=kernel // 2, groups=weight.shape[0])
        for part, weight, kernel in zip(parts, weights, kernel_sizes, strict=True)
    ]
    y = torch.cat(outputs, dim=1).to(x.dtype)
    if not want_stats:
        return y
    stored = y.to(dtype)
    return y, torch.stack([stored.sum((0, 2, 3)), (stored * stored).sum((0, 2, 3))])
