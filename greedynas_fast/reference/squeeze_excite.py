"""Squeeze-and-excitation, https://arxiv.org/abs/1709.01507, after an optional scale, shift and activation."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .bn_act import ACTIVATIONS

GATES: dict[str, Callable[[Tensor], Tensor]] = {"hard_sigmoid": F.hardsigmoid, "sigmoid": Tensor.sigmoid}


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    activation: str = "relu",
    gate: str = "hard_sigmoid",
    norm_act: tuple[Tensor, Tensor, str] | None = None,
) -> Tensor:
    """Gives a * gate(expand(act(reduce(mean(a))))); see `greedynas_fast.ops.squeeze_excite.squeeze_excite`."""
    if norm_act is None:
        a = x
    else:
        scale, shift = (value.to(x.dtype).view(1, -1, 1, 1) for value in norm_act[:2])
        a = ACTIVATIONS[norm_act[2]](x * scale + shift)
    means = a.mean((2, 3)).to(reduce_weight.dtype)  # [N, C]
    hidden = ACTIVATIONS[activation](F.linear(means, reduce_weight.flatten(1), reduce_bias))
    gates = GATES[gate](F.linear(hidden, expand_weight.flatten(1), expand_bias))
    return a * gates.to(x.dtype)[:, :, None, None]
