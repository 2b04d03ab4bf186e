"""Layers of torch that run as fused operations; see `accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, has_operation
from greedynas_fast.ops.mixconv import mixconv

# The class to replace, the class that replaces it, and whether that can run a given layer.
Swap = tuple[type[nn.Module], type[nn.Module], Callable[[Any], bool]]


class DepthwiseConv2d(Fusable, nn.Conv2d):
    """A depthwise convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """What `nn.Conv2d` does."""
        if self.fuses(x):
            return mixconv(x, [self.weight], [self.kernel_size[0]], self.stride[0])
        return super().forward(x)


def is_depthwise(conv: nn.Module) -> bool:
    """Whether this convolution can be a `DepthwiseConv2d`."""
    return isinstance(conv, nn.Conv2d) and conv.groups > 1 and has_operation(conv)


def is_pointwise(conv: nn.Module) -> bool:
    """Whether this is a plain 1x1 convolution without bias."""
    return isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.bias is None and has_operation(conv)


def depthwise_groups(conv: nn.Module) -> list[nn.Conv2d] | None:
    """The convolutions of a depthwise or mixed convolution; None if there is no operation for them."""
    parts = [conv] if isinstance(conv, nn.Conv2d) else list(conv.children())
    if not parts or not all(is_depthwise(part) for part in parts):
        return None
    return cast("list[nn.Conv2d]", parts)


SWAPS: list[Swap] = [(nn.Conv2d, DepthwiseConv2d, is_depthwise)]
