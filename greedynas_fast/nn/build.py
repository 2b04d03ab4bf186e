"""From an operation's record to its module."""

from __future__ import annotations

from torch import nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.bottleneck import Bottleneck
from greedynas_fast.nn.identity import build_identity
from greedynas_fast.nn.inverted_residual import InvertedResidual
from greedynas_fast.nn.shuffle_unit import ShuffleUnit
from greedynas_fast.spaces.specs import (
    BottleneckSpec,
    IdentitySpec,
    InvertedResidualSpec,
    OperationSpec,
    ShuffleUnitSpec,
)


def build_operation(spec: OperationSpec, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The module of one operation, with PyTorch's default weights (see `initialise`).

    Args:
        spec: what to build.
        in_channels: width of the input.
        out_channels: width of the output.
        stride: of the operation's one strided convolution.

    Returns:
        A module [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        InputError: an unknown kind of operation, a stride below 1, or channels that the operation cannot have.
    """
    if stride < 1:
        raise InputError(f"stride: expected 1 or more, got {stride}")
    if isinstance(spec, IdentitySpec):
        return build_identity(in_channels, out_channels, stride)
    if isinstance(spec, InvertedResidualSpec):
        return InvertedResidual(spec, in_channels, out_channels, stride)
    if isinstance(spec, ShuffleUnitSpec):
        return ShuffleUnit(spec, in_channels, out_channels, stride)
    if isinstance(spec, BottleneckSpec):
        return Bottleneck(spec, in_channels, out_channels, stride)
    raise InputError(f"spec: expected the record of an operation, got {type(spec).__name__}")
