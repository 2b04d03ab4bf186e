"""The 1x1 convolution, with norm and activation before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .bn_act import ACTIVATIONS


def pointwise(x: Tensor, weight: Tensor, norm_act: tuple[Tensor, Tensor, str] | None = None) -> Tensor:
    """The definition in plain torch; see `greedynas_fast.ops.pointwise`. Types below float32 are rounded at the end."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = x.to(dtype)
    if norm_act is not None:
        scale, shift, activation = norm_act
        values = ACTIVATIONS[activation](values * scale.to(dtype)[:, None, None] + shift.to(dtype)[:, None, None])
    return F.conv2d(values, weight.to(dtype), groups=x.shape[1] // weight.shape[1]).to(x.dtype)
