"""What a network of a search space is made of, as plain frozen data.

These records say everything that the cost table (`cost.py`) and the module builders (`greedynas_fast.nn`) need to know,
so that both are derived from one description. No arithmetic and no torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["identity", "relu", "hard_swish"]


@dataclass(frozen=True)
class SqueezeExciteSpec:
    """Global average pool, 1x1 with bias to `reduced(width)`, activation, 1x1 with bias, gate, scale.

    Attributes:
        ratio: reduced width over the width of the tensor that is gated; `reduced = max(1, int(ratio * width))`.
        activation: between the two convolutions.
        gate: `hard_sigmoid` or `sigmoid`.
    """

    ratio: float = 0.25
    activation: Activation = "hard_swish"
    gate: Literal["hard_sigmoid", "sigmoid"] = "hard_sigmoid"

    def reduced(self, width: int) -> int:
        """Channels between the two convolutions for a tensor of `width` channels."""
        return max(1, int(self.ratio * width))


@dataclass(frozen=True)
class IdentitySpec:
    """Nothing if stride 1 and equal channels, else a 1x1 convolution with that stride and BN, no activation."""

    name: str = "ID"


@dataclass(frozen=True)
class InvertedResidualSpec:
    """MobileNetV2 block: 1x1 expand, BN, act; depthwise, BN, act; [SE on the expanded width]; 1x1 project, BN.

    Residual if stride 1 and equal channels. `expansion == 1` has no expand convolution. More than one kernel size means
    MixConv: the expanded channels are split by `mix_split`, one depthwise kernel size a group, one BN over all.
    """

    name: str
    expansion: int
    kernel_sizes: tuple[int, ...]
    activation: Activation = "hard_swish"
    se: SqueezeExciteSpec | None = None


@dataclass(frozen=True)
class ShuffleUnitSpec:
    """ShuffleNetV2 unit; `kernel_size` is 3, 5, 7 or "x" (three times depthwise 3x3, BN, 1x1, BN, act)."""

    name: str
    kernel_size: int | Literal["x"]
    activation: Activation = "relu"
    se: SqueezeExciteSpec | None = None


@dataclass(frozen=True)
class BottleneckSpec:
    """ResNet / ResNeXt bottleneck: 1x1, BN, ReLU; k x k (stride here), BN, ReLU; 1x1, BN; SE; residual; ReLU.

    The shortcut is a 1x1 convolution with BN where the shape changes. `planes` is `out_channels / 4`;
    the inner width is `inner_width(planes)`.
    """

    name: str
    kernel_size: int
    width_factor: float
    groups: int = 1
    se: SqueezeExciteSpec | None = None

    def inner_width(self, planes: int) -> int:
        """Channels of the k x k convolution: `planes * factor`, or 32-group ResNeXt's floor(planes*factor*4/64)*32."""
        if self.groups == 1:
            return int(planes * self.width_factor)
        return int(planes * self.width_factor * 4 / 64) * self.groups


OperationSpec: TypeAlias = IdentitySpec | InvertedResidualSpec | ShuffleUnitSpec | BottleneckSpec


@dataclass(frozen=True)
class LayerSpec:
    """One searchable layer (or one fixed block, then with a single operation)."""

    index: int
    stage: int
    in_channels: int
    out_channels: int
    stride: int
    ops: tuple[OperationSpec, ...]


@dataclass(frozen=True)
class StemSpec:
    """k x k convolution, BN, activation, [3x3 stride-2 max pool], then fixed blocks (index -1, one operation each)."""

    out_channels: int
    kernel_size: int = 3
    stride: int = 2
    activation: Activation = "relu"
    max_pool: bool = False
    blocks: tuple[LayerSpec, ...] = ()


@dataclass(frozen=True)
class HeadSpec:
    """[1x1 convolution to `channels`, BN, activation], global average pool, dropout, linear to the classes.

    `channels=None` has no convolution (ResNet).
    """

    in_channels: int
    channels: int | None = 1280
    activation: Activation = "relu"
    dropout: float = 0.2


def mix_split(channels: int, groups: int) -> tuple[int, ...]:
    """Channels of each MixConv group: ceil(C / groups) for all but the last, which takes the rest.

    Note: timm gives the remainder to the first group instead; this is the one place that splits.
    """
    size = -(-channels // groups)
    split = (size,) * (groups - 1)
    return (*split, channels - sum(split))
