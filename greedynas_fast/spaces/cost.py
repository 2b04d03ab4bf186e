"""Exact parameter and multiply-accumulate counts of every operation, stem and head, from their specifications alone.

Parameters are those that training changes: convolutions, linear layers, biases, and the two affine vectors of each
batch normalisation. MACs are those of convolutions, linear layers and squeeze-and-excitation; normalisation,
activations, pooling, additions and shuffles count as none. A convolution pads by k // 2, so its output has
ceil(input / stride) pixels a side. The same counts follow from the modules that `greedynas_fast.nn` builds.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from greedynas_fast.errors import InputError
from greedynas_fast.spaces.specs import (
    BottleneckSpec,
    HeadSpec,
    IdentitySpec,
    InvertedResidualSpec,
    OperationSpec,
    ShuffleUnitSpec,
    SqueezeExciteSpec,
    StemSpec,
    mix_split,
)


class Cost(NamedTuple):
    """What a network, or a part of one, costs.

    Attributes:
        params: trainable parameters.
        macs: multiply-accumulates for one image.
    """

    params: int
    macs: int


class ShuffleWidths(NamedTuple):
    """Channels inside a ShuffleNetV2 unit; see `shuffle_widths`.

    Attributes:
        branch_in: channels that enter the main branch.
        mid: channels between the main branch's layers.
        branch_out: channels that the main branch makes.
        other_out: channels of the other half: passed through at stride 1, made by its own branch otherwise.
    """

    branch_in: int
    mid: int
    branch_out: int
    other_out: int


def shuffle_widths(in_channels: int, out_channels: int, stride: int) -> ShuffleWidths:
    """Channels inside a ShuffleNetV2 unit.

    Stride 1: half of the input passes through, the other half enters the branch, which makes what is missing to
    `out_channels`. Stride above 1: the whole input enters both branches and each makes half of the output.
    """
    mid = out_channels // 2
    if stride == 1:
        other = in_channels // 2
        return ShuffleWidths(in_channels - other, mid, out_channels - other, other)
    return ShuffleWidths(in_channels, mid, mid, out_channels - mid)


def output_size(size: int, stride: int) -> int:
    """Pixels a side after a convolution or max pool with padding k // 2."""
    return -(-size // stride)


def check_shape(spec: OperationSpec, in_channels: int, out_channels: int, stride: int) -> None:
    """Refuse a shape that an operation cannot be built for.

    Raises:
        InputError: naming the operation and the channels that it would need.
    """
    shape = f"{in_channels} -> {out_channels} channels at stride {stride}"
    if isinstance(spec, InvertedResidualSpec):
        width = in_channels * spec.expansion
        if min(mix_split(width, len(spec.kernel_sizes))) < 1:
            raise InputError(f"{spec.name} cannot make {shape}: {width} expanded channels are too few for its groups")
    elif isinstance(spec, ShuffleUnitSpec):
        if out_channels % 2 or (stride == 1 and in_channels % 2):
            raise InputError(f"{spec.name} cannot make {shape}: it works on halves, which need an even number")
        if min(shuffle_widths(in_channels, out_channels, stride)) < 1:
            raise InputError(f"{spec.name} cannot make {shape}: nothing would be left for its branch")
    elif isinstance(spec, BottleneckSpec):
        if out_channels % 4:
            raise InputError(f"{spec.name} cannot make {shape}: a bottleneck's outputs must be a multiple of 4")
        if spec.inner_width(out_channels // 4) < 1:
            raise InputError(f"{spec.name} cannot make {shape}: its inner width would be 0")


def operation_cost(spec: OperationSpec, in_channels: int, out_channels: int, stride: int, size: int) -> Cost:
    """Cost of one operation at one place.

    Args:
        spec: the operation.
        in_channels: channels that enter it.
        out_channels: channels that leave it.
        stride: of its one strided convolution.
        size: pixels a side of the (square) feature map that enters it.
    """
    if isinstance(spec, IdentitySpec):
        if stride == 1 and in_channels == out_channels:
            return Cost(0, 0)
        return _conv_bn(in_channels, out_channels, 1, output_size(size, stride))
    if isinstance(spec, InvertedResidualSpec):
        return _inverted_residual(spec, in_channels, out_channels, stride, size)
    if isinstance(spec, ShuffleUnitSpec):
        return _shuffle_unit(spec, in_channels, out_channels, stride, size)
    return _bottleneck(spec, in_channels, out_channels, stride, size)


def stem_cost(stem: StemSpec, in_channels: int, size: int) -> Cost:
    """Cost of the stem with its fixed blocks, for images of `size` pixels a side."""
    size = output_size(size, stem.stride)
    parts = [_conv_bn(in_channels, stem.out_channels, stem.kernel_size, size)]
    if stem.max_pool:
        size = output_size(size, 2)
    for block in stem.blocks:
        parts.append(operation_cost(block.ops[0], block.in_channels, block.out_channels, block.stride, size))
        size = output_size(size, block.stride)
    return _total(parts)


def stem_output_size(stem: StemSpec, size: int) -> int:
    """Pixels a side of the feature map that leaves the stem."""
    size = output_size(size, stem.stride)
    if stem.max_pool:
        size = output_size(size, 2)
    for block in stem.blocks:
        size = output_size(size, block.stride)
    return size


def head_cost(head: HeadSpec, num_classes: int, size: int) -> Cost:
    """Cost of the head for a feature map of `size` pixels a side."""
    if head.channels is None:
        return _linear(head.in_channels, num_classes)
    return _total([_conv_bn(head.in_channels, head.channels, 1, size), _linear(head.channels, num_classes)])


def _inverted_residual(spec: InvertedResidualSpec, in_channels: int, out_channels: int, stride: int, size: int) -> Cost:
    """Expand (unless expansion is 1), depthwise over the kernel groups, squeeze-and-excitation, project."""
    width, out_size = in_channels * spec.expansion, output_size(size, stride)
    parts = [] if spec.expansion == 1 else [_conv_bn(in_channels, width, 1, size)]
    parts.append(_depthwise_bn(width, spec.kernel_sizes, out_size))
    if spec.se is not None:
        parts.append(_squeeze_excite(spec.se, width))
    parts.append(_conv_bn(width, out_channels, 1, out_size))
    return _total(parts)


def _shuffle_unit(spec: ShuffleUnitSpec, in_channels: int, out_channels: int, stride: int, size: int) -> Cost:
    """Main branch (and the second one where the stride is not 1)."""
    widths, out_size = shuffle_widths(in_channels, out_channels, stride), output_size(size, stride)
    kernel = 3 if spec.kernel_size == "x" else spec.kernel_size
    parts = []
    if spec.kernel_size == "x":
        steps = (widths.branch_in, widths.mid, widths.mid, widths.branch_out)
        for before, after in pairwise(steps):
            # The first of the three depthwise convolutions has the stride.
            parts += [_depthwise_bn(before, (kernel,), out_size), _conv_bn(before, after, 1, out_size)]
    else:
        parts.append(_conv_bn(widths.branch_in, widths.mid, 1, size))
        parts.append(_depthwise_bn(widths.mid, (kernel,), out_size))
        parts.append(_conv_bn(widths.mid, widths.branch_out, 1, out_size))
    if spec.se is not None:
        parts.append(_squeeze_excite(spec.se, widths.branch_out))
    if stride != 1:
        parts.append(_depthwise_bn(in_channels, (kernel,), out_size))
        parts.append(_conv_bn(in_channels, widths.other_out, 1, out_size))
    return _total(parts)


def _bottleneck(spec: BottleneckSpec, in_channels: int, out_channels: int, stride: int, size: int) -> Cost:
    """Reduce, k x k with the stride, expand, squeeze-and-excitation, shortcut where the shape changes."""
    width, out_size = spec.inner_width(out_channels // 4), output_size(size, stride)
    parts = [
        _conv_bn(in_channels, width, 1, size),
        _conv_bn(width, width, spec.kernel_size, out_size, groups=spec.groups),
        _conv_bn(width, out_channels, 1, out_size),
    ]
    if spec.se is not None:
        parts.append(_squeeze_excite(spec.se, out_channels))
    if stride != 1 or in_channels != out_channels:
        parts.append(_conv_bn(in_channels, out_channels, 1, out_size))
    return _total(parts)


def _conv_bn(in_channels: int, out_channels: int, kernel: int, out_size: int, groups: int = 1) -> Cost:
    """Convolution without bias, then batch normalisation with two affine vectors."""
    weights = in_channels // groups * out_channels * kernel**2
    return Cost(weights + 2 * out_channels, weights * out_size**2)


def _depthwise_bn(channels: int, kernels: tuple[int, ...], out_size: int) -> Cost:
    """Depthwise convolution over kernel groups, one batch normalisation over all."""
    split = mix_split(channels, len(kernels))
    weights = sum(width * kernel**2 for width, kernel in zip(split, kernels, strict=True))
    return Cost(weights + 2 * channels, weights * out_size**2)


def _squeeze_excite(se: SqueezeExciteSpec, width: int) -> Cost:
    """Two 1x1 convolutions with bias on one pixel."""
    reduced = se.reduced(width)
    return Cost(2 * width * reduced + reduced + width, 2 * width * reduced)


def _linear(in_features: int, out_features: int) -> Cost:
    """Linear layer with bias."""
    return Cost((in_features + 1) * out_features, in_features * out_features)


def _total(parts: list[Cost]) -> Cost:
    """Sum of costs."""
    return Cost(sum(part.params for part in parts), sum(part.macs for part in parts))
