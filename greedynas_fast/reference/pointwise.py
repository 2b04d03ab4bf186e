"""The 1x1 convolution, with norm and activation before it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .mixconv import activated


def pointwise(x: Tensor, weight: Tensor, norm_act: tuple[Tensor, Tensor, str] | None = None) -> Tensor:
    """The definition in plain torch; see `greedynas_fast.ops.pointwise`. Types below float32 are rounded at the end."""
    values = activated(x, norm_act)
    return F.conv2d(values, weight.to(values.dtype), groups=x.shape[1] // weight.shape[1]).to(x.dtype)
