"""Squeeze-and-excitation, https://arxiv.org/abs/1709.01507, with the activation and gate that the spec names."""

from __future__ import annotations

from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import Fusable, name_of
from greedynas_fast.nn.fused_residual import GateLayers
from greedynas_fast.nn.primitives import activation
from greedynas_fast.ops.squeeze_excite import squeeze_excite
from greedynas_fast.spaces.specs import SqueezeExciteSpec


def _gate(name: str) -> nn.Module:
    if name == "hard_sigmoid":
        return nn.Hardsigmoid()
    if name == "sigmoid":
        return nn.Sigmoid()
    raise InputError(f"se gate: expected hard_sigmoid or sigmoid, got {name!r}")


class SqueezeExcite(Fusable):
    """Scale each channel by a gate computed from the averages of all channels.

    Args:
        channels: width of the tensor that is gated.
        spec: reduction, activation and gate.
    """

    def __init__(self, channels: int, spec: SqueezeExciteSpec) -> None:
        super().__init__()
        reduced = spec.reduced(channels)
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act1 = activation(spec.activation)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)
        self.gate = _gate(spec.gate)

    def forward(self, x: Tensor) -> Tensor:
        """Gate `x` [N, C, H, W]; the result has its shape and dtype."""
        if self.fuses(x):
            *parameters, act, gate_name = self.gate_layers().parameters()
            return squeeze_excite(x, *parameters, activation=act, gate=gate_name)
        squeezed = x.mean((2, 3), keepdim=True)  # [N, C, 1, 1]
        gate: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(squeezed))))
        return x * gate

    def gate_layers(self) -> GateLayers:
        """What the fused operations need to know."""
        gate = "sigmoid" if isinstance(self.gate, nn.Sigmoid) else "hard_sigmoid"
        return GateLayers(self.conv_reduce, self.conv_expand, name_of(self.act1), gate)
