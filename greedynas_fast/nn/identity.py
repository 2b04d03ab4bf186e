"""The operation that leaves a layer out, or only changes its shape."""

from __future__ import annotations

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable
from greedynas_fast.nn.fused_norm import IDENTITY, run_norm_act
from greedynas_fast.nn.primitives import conv2d


class ConvIdentity(Fusable):
    """What stands for "no operation" where the shape changes: a strided 1x1 convolution and BN, no activation.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, stride=stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        raw: Tensor = self.conv(x)
        y = run_norm_act(self, self.bn, IDENTITY, raw)
        if y is None:
            y = self.bn(raw)
        return y


def build_identity(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """`nn.Identity` if the shape stays, else a `ConvIdentity`."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvIdentity(in_channels, out_channels, stride)
