"""ResNet and ResNeXt bottlenecks, https://arxiv.org/abs/1512.03385 and https://arxiv.org/abs/1611.05431."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, norm_act
from greedynas_fast.nn.primitives import conv2d
from greedynas_fast.nn.squeeze_excite import SqueezeExcite
from greedynas_fast.spaces.specs import BottleneckSpec


class Bottleneck(Fusable):
    """1x1, BN, ReLU; k x k (stride here), BN, ReLU; 1x1, BN; [SE]; plus the shortcut; ReLU.

    `downsample` (1x1 convolution, BN) is the shortcut where the shape changes, else the shortcut is the input itself.

    Args:
        spec: kernel size, width factor, groups and squeeze-and-excitation.
        in_channels: width of the input.
        out_channels: width of the output; `planes` is a quarter of it.
        stride: of the k x k convolution and of the shortcut.
    """

    def __init__(self, spec: BottleneckSpec, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = spec.inner_width(out_channels // 4)
        self.conv1 = conv2d(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv2d(width, width, spec.kernel_size, stride=stride, groups=spec.groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv2d(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.se: nn.Module = nn.Identity() if spec.se is None else SqueezeExcite(out_channels, spec.se)
        self.downsample: nn.Module = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(conv2d(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels))
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        if self.fuses(x, self.bn1, self.bn2, self.bn3):
            return self._fused(x)
        y: Tensor = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        result: Tensor = self.act(y.add_(self.downsample(x)))
        return result

    def _fused(self, x: Tensor) -> Tensor:
        y = norm_act(self.bn1, self.act, self.conv1(x))
        y = norm_act(self.bn2, self.act, self.conv2(y))
        shortcut = self._fused_shortcut(x)
        if isinstance(self.se, nn.Identity):
            return norm_act(self.bn3, self.act, self.conv3(y), shortcut)
        y = self.se(norm_act(self.bn3, nn.Identity(), self.conv3(y)))
        result: Tensor = self.act(y.add_(shortcut))
        return result

    def _fused_shortcut(self, x: Tensor) -> Tensor:
        if isinstance(self.downsample, nn.Identity):
            return x
        conv, norm = cast("nn.Sequential", self.downsample)
        return norm_act(cast("nn.BatchNorm2d", norm), nn.Identity(), conv(x))
