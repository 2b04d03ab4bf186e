"""An inverted residual from the layers that hold its parameters, whichever library they are of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from greedynas_fast.nn.backend import activation_name, running_moments, update_running
from greedynas_fast.ops.inverted_residual import Gate, Norm, inverted_residual


def run_inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, nn.BatchNorm2d] | None,
    depthwise: tuple[Sequence[nn.Conv2d], nn.BatchNorm2d],
    project: tuple[Tensor, nn.BatchNorm2d],
    gate: Gate | None,
    *,
    activation: nn.Module,
    residual: bool,
) -> Tensor:
    """Run the block as one operation, with the bookkeeping of running statistics that its batch norms would do.

    Args:
        x: [N, C_in, H, W].
        expand: weight [E, C_in / G, 1, 1] of the 1x1 convolution, and norm, or None.
        depthwise: convolutions, one a group of channels, and norm.
        project: weight [C_out, E / G, 1, 1] of the 1x1 convolution, and norm.
        gate: squeeze-and-excitation before the projection.
        activation: after the first two norms; one that `activation_name` knows.
        residual: add x to the result.
    """
    name = activation_name(activation)
    assert name is not None
    y, moments = inverted_residual(
        x,
        None if expand is None else (expand[0], _norm(expand[1])),
        ([conv.weight for conv in depthwise[0]], _norm(depthwise[1])),
        (project[0], _norm(project[1])),
        gate,
        stride=depthwise[0][0].stride[0],
        activation=name,
        residual=residual,
    )
    values_in, values_out = (t.numel() // t.shape[1] for t in (x, y))
    if expand is not None:
        update_running(expand[1], moments.pop(0), values_in)
    update_running(depthwise[1], moments[0], values_out)
    update_running(project[1], moments[1], values_out)
    return y


def _norm(norm: nn.BatchNorm2d) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps, running_moments(norm))
