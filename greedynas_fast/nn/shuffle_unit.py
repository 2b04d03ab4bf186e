"""The ShuffleNetV2 unit, https://arxiv.org/abs/1807.11164, and SPOS's variant `x`, https://arxiv.org/abs/1904.00420."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import Fusable, is_fused, run_layers
from greedynas_fast.nn.primitives import activation, conv2d, depthwise
from greedynas_fast.nn.squeeze_excite import SqueezeExcite
from greedynas_fast.ops.shuffle import channel_shuffle, shuffle_split
from greedynas_fast.spaces.cost import ShuffleWidths, shuffle_widths
from greedynas_fast.spaces.specs import ShuffleUnitSpec


def _separable(in_channels: int, out_channels: int, act: str, *, stride: int = 1) -> list[nn.Module]:
    """Depthwise 3x3, BN, 1x1, BN, act: a third of the `x` branch."""
    return [
        depthwise(in_channels, 3, stride=stride),
        nn.BatchNorm2d(in_channels),
        conv2d(in_channels, out_channels),
        nn.BatchNorm2d(out_channels),
        activation(act),
    ]


def _main_branch(spec: ShuffleUnitSpec, widths: ShuffleWidths, stride: int) -> nn.Sequential:
    """The branch that computes: 1x1, k x k depthwise, 1x1; or three separable convolutions for `x`; then SE."""
    in_channels, width, out_channels, _ = widths
    layers: list[nn.Module]
    if spec.kernel_size == "x":
        layers = _separable(in_channels, width, spec.activation, stride=stride)
        layers += _separable(width, width, spec.activation)
        layers += _separable(width, out_channels, spec.activation)
    else:
        layers = [
            conv2d(in_channels, width),
            nn.BatchNorm2d(width),
            activation(spec.activation),
            depthwise(width, spec.kernel_size, stride=stride),
            nn.BatchNorm2d(width),
            conv2d(width, out_channels),
            nn.BatchNorm2d(out_channels),
            activation(spec.activation),
        ]
    if spec.se is not None:
        layers.append(SqueezeExcite(out_channels, spec.se))
    return nn.Sequential(*layers)


class ShuffleUnit(Fusable):
    """Two halves of the channels, one through a branch (stride 1) or both (stride 2), then concatenated.

    Stride 1: channel shuffle and split; the first half is kept, the second goes through `branch_main`, which makes
    `out - in / 2` channels, so that stages may change their width without a stride. Stride 2: the whole input goes
    through `branch_proj` (depthwise, BN, 1x1, BN, act) and `branch_main`, each of which makes half of the output. The
    inner width of `branch_main` is half of the output. Squeeze-and-excitation, where the spec has it, ends
    `branch_main`. Widths are those of `spaces.cost.shuffle_widths`.

    Args:
        spec: kernel size, activation and squeeze-and-excitation.
        in_channels: width of the input.
        out_channels: width of the output.
        stride: 1, or more for the unit with two branches.

    Raises:
        InputError: at stride 1 an input of odd width, or widths that leave nothing for a branch.
    """

    def __init__(self, spec: ShuffleUnitSpec, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        widths = shuffle_widths(in_channels, out_channels, stride)
        self.keeps_half = stride == 1
        if min(widths) < 1 or (self.keeps_half and in_channels % 2):
            raise InputError(
                f"{spec.name}: expected an even input at stride 1 and an output wider than half of it, "
                f"got {in_channels} -> {out_channels} channels at stride {stride}"
            )
        if not self.keeps_half:
            kernel_size = 3 if spec.kernel_size == "x" else spec.kernel_size
            self.branch_proj = nn.Sequential(
                depthwise(in_channels, kernel_size, stride=stride),
                nn.BatchNorm2d(in_channels),
                conv2d(in_channels, widths.other_out),
                nn.BatchNorm2d(widths.other_out),
                activation(spec.activation),
            )
        self.branch_main = _main_branch(spec, widths, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]."""
        if self.keeps_half:
            kept, moved = shuffle_split(x) if self.fuses(x) else channel_shuffle(x).chunk(2, dim=1)
        else:
            kept, moved = self._branch(self.branch_proj, x), x
        return torch.cat((kept, self._branch(self.branch_main, moved)), dim=1)

    def _branch(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        if self.fuses(x, *(layer for layer in layers if is_fused(layer))):
            return run_layers(layers, x)
        y: Tensor = layers(x)
        return y
