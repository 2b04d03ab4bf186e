"""Batch normalisation, https://arxiv.org/abs/1502.03167, with the residual and the activation after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _relu6(z: Tensor) -> Tensor:
    """`F.relu6`, whose gradient on a CPU can have other strides than torch.compile expects."""
    return torch.where(z >= 6, 6.0, F.relu(z))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "hard_swish": F.hardswish,
    "silu": F.silu,
    "relu6": _relu6,
}


def bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    residual: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """act(bn(x)), or act(bn(x) + residual); see `greedynas_fast.ops.bn_act.bn_act`."""
    if statistics is not None:
        mean, variance = statistics[1], statistics[2] / statistics[0]
        z = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    elif x.numel() == 0:
        z = x + 0 if weight is None else x * weight.to(x.dtype).view(1, -1, 1, 1)
        z = z if bias is None else z + bias.to(x.dtype).view(1, -1, 1, 1)
    else:
        z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return ACTIVATIONS[activation](z if residual is None else z + residual)


def bn_statistics(x: Tensor) -> Tensor:
    """Count, mean and sum of squared differences from the mean of each channel of [N, C, H, W]: float32 [3, C]."""
    rows = x.detach().double().transpose(0, 1).flatten(1)  # [C, N H W]
    count = rows.shape[1]
    mean = rows.sum(1) / max(count, 1)
    squares = (rows - mean[:, None]).square().sum(1)
    return torch.stack([torch.full_like(mean, count), mean, squares]).float()


def combine_statistics(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """The statistics of all parts together: [K, 3, C], or K of [3, C], -> float32 [3, C]. No part has count 0 and 0."""
    stacked = parts if isinstance(parts, Tensor) else torch.stack(list(parts))
    count, mean, squares = stacked.double().unbind(1)  # [K, C] each
    total = count.sum(0)
    joined = (count * mean).sum(0) / total.clamp_min(1)
    squares = (squares + count * (mean - joined).square()).sum(0)
    return torch.stack([total, joined, squares]).float()
