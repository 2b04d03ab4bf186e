"""`bench bn_act`: batch normalisation with its activation, forward and backward, against torch's two layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast.ops.bn_act import bn_act

from .norm import measure_layer, shapes
from .timing import Budget

_ACTIVATIONS = {"hard_swish": F.hardswish, "relu": F.relu}


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `bn_act.hard_swish` and `bn_act.relu`: training, running statistics included.

    Raises:
        RuntimeError: the core and torch disagree.
    """
    rows = []
    for shape in shapes(budget):
        for activation in _ACTIVATIONS:
            rows += _measure(shape, activation, budget)
    return rows


def _measure(shape: tuple[int, int, int, int], activation: str, budget: Budget) -> list[dict[str, Any]]:
    channels = shape[1]
    mean, var = torch.zeros(channels), torch.ones(channels)

    def core(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return bn_act(x, weight, bias, mean, var, training=True, activation=activation)

    def peer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        running = (mean.to(x.dtype), var.to(x.dtype))
        y: Tensor = _ACTIVATIONS[activation](F.batch_norm(x, *running, weight, bias, True))
        return y

    parameters = [torch.ones(channels), torch.zeros(channels)]
    return measure_layer(f"bn_act.{activation}", shape, parameters, core, peer, budget)
