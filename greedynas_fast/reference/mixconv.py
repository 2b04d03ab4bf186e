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
    *,
    padding: str = "symmetric",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The definition in plain torch. Types below float32 are computed in float32 and rounded once, at the end.

    Args:
        x: [N, C, H, W], floating point.
        weights: one [C_g, 1, k, k] a group of consecutive channels.
        kernel_sizes: the odd k of each group, as the weights have them.
        stride: of all groups.
        norm_act: scale [C], shift [C] and the name of an activation: then act(x * scale + shift) is convolved, padded
            with zeros after the activation.
        want_stats: return statistics too.
        padding: `symmetric` (k // 2 on all sides) or `same_upper`; see `greedynas_fast.ops.mixconv`.

    Returns:
        y [N, C, H', W'] of the dtype of x; with `want_stats` also [2, C]: sum and sum of squares of each channel of y,
        float64 for float64 and float32 otherwise.
    """
    values = activated(x, norm_act)
    dtype = values.dtype
    parts = torch.split(values, [weight.shape[0] for weight in weights], dim=1)
    outputs = [_convolved(part, weight.to(dtype), stride, padding) for part, weight in zip(parts, weights, strict=True)]
    y = torch.cat(outputs, dim=1).to(x.dtype)
    if not want_stats:
        return y
    stored = y.to(dtype)
    return y, torch.stack([stored.sum((0, 2, 3)), (stored * stored).sum((0, 2, 3))])


def activated(x: torch.Tensor, norm_act: tuple[torch.Tensor, torch.Tensor, str] | None) -> torch.Tensor:
    """act(x * scale + shift), or x where there is nothing before the convolution, in float32 at least."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(dtype)
    if norm_act is None:
        return values
    scale, shift, activation = norm_act
    return ACTIVATIONS[activation](values * scale.to(dtype)[:, None, None] + shift.to(dtype)[:, None, None])


def _convolved(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: str) -> torch.Tensor:
    channels, _, _, kernel = weight.shape
    if padding == "symmetric":
        return F.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=channels)
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        zeros = max((size - 1) // stride * stride + kernel - size, 0)
        sides += [zeros // 2, zeros - zeros // 2]
    return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=channels)
