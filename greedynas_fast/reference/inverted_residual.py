"""MobileNetV2's inverted residual, https://arxiv.org/abs/1801.04381, as a function of its tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .bn_act import ACTIVATIONS
from .mixconv import mixconv
from .squeeze_excite import squeeze_excite

NormTensors = tuple[Tensor, Tensor, float, Tensor | None]  # weight, bias, eps, moments [2, C]
GateTensors = tuple[Tensor, Tensor, Tensor, Tensor, str, str]  # reduce, expand: weight and bias; activation, gate


def inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, NormTensors] | None,
    depthwise: tuple[Sequence[Tensor], NormTensors],
    project: tuple[Tensor, NormTensors],
    gate: GateTensors | None = None,
    *,
    stride: int = 1,
    padding: str = "symmetric",
    activation: str = "hard_swish",
    residual: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The definition in plain torch; see `greedynas_fast.ops.inverted_residual.inverted_residual`."""
    act = ACTIVATIONS[activation]
    moments: list[Tensor] = []
    y = x
    if expand is not None:
        y = act(_normalised(_pointwise(y, expand[0]), expand[1], moments))
    weights, norm = depthwise
    raw = mixconv(y, weights, [weight.shape[-1] for weight in weights], stride, padding=padding)
    assert isinstance(raw, Tensor)
    y = act(_normalised(raw, norm, moments))
    if gate is not None:
        y = squeeze_excite(y, *gate[:4], activation=gate[4], gate=gate[5])
    y = _normalised(_pointwise(y, project[0]), project[1], moments)
    return (y + x if residual else y), moments


def _pointwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, groups=x.shape[1] // weight.shape[1])


def _normalised(z: Tensor, norm: NormTensors, moments: list[Tensor]) -> Tensor:
    """Normalised with the norm's moments, or those of the batch; they are added to `moments`."""
    weight, bias, eps, given = norm
    with torch.no_grad():
        batch = torch.stack((z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)))
    moments.append(batch if given is None else given)
    if given is None:
        return F.batch_norm(z, None, None, weight, bias, True, 0.0, eps)
    return F.batch_norm(z, given[0].to(z.dtype), given[1].to(z.dtype), weight, bias, False, 0.0, eps)
