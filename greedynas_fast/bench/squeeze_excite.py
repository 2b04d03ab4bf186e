"""`bench squeeze_excite`: squeeze-and-excitation, forward and backward, against torch's layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast.ops.squeeze_excite import squeeze_excite

from .norm import measure_layer, shapes
from .timing import Budget


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `squeeze_excite`: reduction to a sixteenth (at least 8), ReLU and hard sigmoid.

    Raises:
        RuntimeError: the core and torch disagree.
    """
    rows = []
    for shape in shapes(budget):
        rows += measure_layer("squeeze_excite", shape, _parameters(shape[1]), _core, _peer, budget)
    return rows


def _parameters(channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    reduced = max(channels // 16, 8)
    weights = (torch.randn(shape, generator=generator) for shape in ((reduced, channels), (channels, reduced)))
    reduce_weight, expand_weight = (weight.div_(weight.shape[1] ** 0.5)[:, :, None, None] for weight in weights)
    return [reduce_weight, torch.zeros(reduced), expand_weight, torch.zeros(channels)]


def _core(x: Tensor, *parameters: Tensor) -> Tensor:
    reduce_weight, reduce_bias, expand_weight, expand_bias = parameters
    return squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias)


def _peer(x: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor) -> Tensor:
    hidden = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), reduce_weight, reduce_bias))
    return x * F.hardsigmoid(F.conv2d(hidden, expand_weight, expand_bias))
