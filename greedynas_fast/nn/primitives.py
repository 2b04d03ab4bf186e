"""The smallest pieces that every block shares: a bias-free convolution and an activation by name."""

from __future__ import annotations

from torch import nn

from greedynas_fast.errors import InputError


def conv2d(in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded by `kernel_size // 2`.

    Raises:
        InputError: an even or non-positive kernel size, or channels that are not positive multiples of `groups`.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size: expected an odd positive number, got {kernel_size}")
    if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
        raise InputError(
            f"convolution: expected positive channels divisible by groups, "
            f"got {in_channels} -> {out_channels} channels in {groups} groups"
        )
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )


def depthwise(channels: int, kernel_size: int, *, stride: int = 1) -> nn.Conv2d:
    """A depthwise convolution without bias: one `kernel_size` x `kernel_size` filter a channel."""
    return conv2d(channels, channels, kernel_size, stride=stride, groups=channels)


def activation(name: str) -> nn.Module:
    """The activation called `name`: `identity`, `relu` or `hard_swish`.

    ReLU works in place: it always follows a batch norm or a fresh sum, whose backward does not need its own output.
    Hard-swish does not: its backward needs its input, and in-place torch would copy that first.

    Raises:
        InputError: an unknown name.
    """
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "hard_swish":
        return nn.Hardswish()
    if name == "identity":
        return nn.Identity()
    raise InputError(f"activation: expected identity, relu or hard_swish, got {name!r}")
