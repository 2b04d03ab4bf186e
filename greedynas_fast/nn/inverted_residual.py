"""MobileNetV2's inverted residual, https://arxiv.org/abs/1801.04381, with MixConv, https://arxiv.org/abs/1907.09595."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import Fusable, run_depthwise
from greedynas_fast.nn.fused_residual import BlockLayers, run_inverted_residual
from greedynas_fast.nn.primitives import activation, conv2d, depthwise
from greedynas_fast.nn.squeeze_excite import SqueezeExcite
from greedynas_fast.spaces.specs import InvertedResidualSpec, mix_split


class MixedConv(Fusable, nn.ModuleList):
    """Depthwise convolution whose channels are split into groups, one kernel size a group (`specs.mix_split`).

    The weights are called `0.weight`, `1.weight`, .. in the order of the kernel sizes; an empty last group has none.

    Args:
        channels: width of input and output.
        kernel_sizes: one a group.
        stride: of every group.

    Raises:
        InputError: so few channels that the split leaves a negative number for the last group.
    """

    def __init__(self, channels: int, kernel_sizes: tuple[int, ...], stride: int) -> None:
        split = mix_split(channels, len(kernel_sizes))
        if split[-1] < 0:
            raise InputError(f"MixConv: {channels} channels cannot be split into {len(kernel_sizes)} groups")
        groups = [(width, kernel) for width, kernel in zip(split, kernel_sizes, strict=True) if width]
        super().__init__(depthwise(width, kernel, stride=stride) for width, kernel in groups)
        self.split = [width for width, _ in groups]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]."""
        convs = cast("list[nn.Conv2d]", list(self))
        if self.fuses(x):
            return run_depthwise(convs, x)
        parts = torch.split(x, self.split, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self, parts, strict=True)], dim=1)


class InvertedResidual(Fusable):
    """1x1 expand, BN, act; depthwise, BN, act; [SE]; 1x1 project, BN; residual if stride 1 and equal channels.

    Attributes `conv_pw`, `bn1` and `act1` are absent where the expansion is 1.

    Args:
        spec: expansion, kernel sizes, activation and squeeze-and-excitation.
        in_channels: width of the input.
        out_channels: width of the output.
        stride: of the depthwise convolution.
    """

    def __init__(self, spec: InvertedResidualSpec, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = in_channels * spec.expansion
        self.expands = spec.expansion != 1
        self.has_residual = stride == 1 and in_channels == out_channels
        if self.expands:
            self.conv_pw = conv2d(in_channels, width)
            self.bn1 = nn.BatchNorm2d(width)
            self.act1 = activation(spec.activation)
        self.conv_dw: nn.Module = (
            depthwise(width, spec.kernel_sizes[0], stride=stride)
            if len(spec.kernel_sizes) == 1
            else MixedConv(width, spec.kernel_sizes, stride)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation(spec.activation)
        self.se: nn.Module = nn.Identity() if spec.se is None else SqueezeExcite(width, spec.se)
        self.conv_pwl = conv2d(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        fused = run_inverted_residual(self, _layers_of, x)
        if fused is not None:
            return fused
        y: Tensor = self.act1(self.bn1(self.conv_pw(x))) if self.expands else x
        y = self.act2(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(self.se(y)))
        return y.add_(x) if self.has_residual else y


def _layers_of(block: InvertedResidual) -> BlockLayers:
    convs = list(block.conv_dw) if isinstance(block.conv_dw, MixedConv) else [block.conv_dw]
    return BlockLayers(
        (block.conv_pw, block.bn1) if block.expands else None,
        (cast("list[nn.Conv2d]", convs), block.bn2),
        (block.conv_pwl, block.bn3),
        block.se.gate_layers() if isinstance(block.se, SqueezeExcite) else None,
        activation=block.act2,
        residual=block.has_residual,
    )
