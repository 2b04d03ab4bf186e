"""Batch norm, residual and activation, and pooling, of a batch of several paths; the plain PyTorch twin.

A path is a part of the batch: a tensor [N, C, H, W] of its own, C being 0 where the path masks the operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bn_act import ACTIVATIONS


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def masked_moments(parts: Sequence[Tensor]) -> Tensor:
    """Means and biased variances of each part's channels, one part after the other: [2, channels]."""
    means, variances = [], []
    for part in parts:
        values = _wide(part)
        empty = values.numel() == 0
        means.append(values.sum((0, 2, 3)) if empty else values.mean((0, 2, 3)))
        variances.append(values.sum((0, 2, 3)) if empty else values.var((0, 2, 3), correction=0))
    return torch.stack([torch.cat(means), torch.cat(variances)])


def masked_scale_shift(moments: Tensor, parameters: Tensor, eps: float) -> Tensor:
    """Scale and shift [2, channels] from moments, and from weights and biases [2, channels]."""
    weight, bias = parameters
    scale = weight / torch.sqrt(moments[1] + eps)
    return torch.stack([scale, bias - moments[0] * scale])


def masked_norm_act(
    parts: Sequence[Tensor], scale_shift: Tensor, activation: str, residuals: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """act(x * scale + shift [+ residual]) of each part; a part without channels gives its residual."""
    results = []
    for index, (part, vectors) in enumerate(zip(parts, _split(parts, scale_shift), strict=True)):
        scale, shift = vectors[:, :, None, None]
        if part.shape[1] == 0 and residuals is not None:
            results.append(residuals[index])
            continue
        z = _wide(part) * scale + shift
        if residuals is not None:
            z = z + residuals[index]
        results.append(ACTIVATIONS[activation](z).to(part.dtype))
    return results


def masked_pool(parts: Sequence[Tensor], scale_shift: Tensor, pools: Sequence[bool], activation: str) -> Tensor:
    """Means over the pixels of act(x * scale + shift), flat, [N, C] of part after part; zeros if not pooled."""
    pooled = []
    for part, vectors, used in zip(parts, _split(parts, scale_shift), pools, strict=True):
        values = _wide(part)
        if used:
            scale, shift = vectors[:, :, None, None]
            pooled.append(ACTIVATIONS[activation](values * scale + shift).mean((2, 3)).flatten())
        else:
            pooled.append(values.new_zeros(part.shape[0] * part.shape[1]))
    return torch.cat(pooled)


def _split(parts: Sequence[Tensor], scale_shift: Tensor) -> tuple[Tensor, ...]:
    """[2, C] of each part."""
    return torch.split(scale_shift, [part.shape[1] for part in parts], dim=1)
