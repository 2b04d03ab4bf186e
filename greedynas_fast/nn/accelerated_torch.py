"""Layers of torch that run as fused operations; see `accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, has_operation, is_mixconv, padding_of, run_depthwise

# The class to replace, the class that replaces it, and whether that can run a given layer.
Swap = tuple[type[nn.Module], type[nn.Module], Callable[[Any], bool]]


class DepthwiseConv2d(Fusable, nn.Conv2d):
    """A depthwise convolution, with or without a bias."""

    def forward(self, x: Tensor) -> Tensor:
        """What `nn.Conv2d` does."""
        if not self.fuses(x):
            return super().forward(x)
        y = run_depthwise([self], x)
        return y if self.bias is None else y.add_(self.bias[:, None, None])

    def _stands_for(self, layer: nn.Module) -> bool:
        return layer is self and is_mixconv(self)


def runs_depthwise(conv: nn.Conv2d) -> bool:
    """Whether this convolution can be a `DepthwiseConv2d`."""
    return conv.groups > 1 and is_mixconv(conv)


def is_depthwise(conv: nn.Module) -> bool:
    """Whether this is a depthwise convolution that operations for whole blocks run: without a bias."""
    return isinstance(conv, nn.Conv2d) and conv.groups > 1 and has_operation(conv)


def is_pointwise(conv: nn.Module) -> bool:
    """Whether this is a plain 1x1 convolution without bias."""
    return isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.bias is None and has_operation(conv)


def depthwise_groups(conv: nn.Module) -> list[nn.Conv2d] | None:
    """The convolutions of a depthwise or mixed convolution; None if there is no operation for them."""
    parts = [conv] if isinstance(conv, nn.Conv2d) else list(conv.children())
    if not parts or not all(is_depthwise(part) for part in parts):
        return None
    convs = cast("list[nn.Conv2d]", parts)
    return convs if len({padding_of(conv) for conv in convs}) == 1 else None


SWAPS: list[Swap] = [(nn.Conv2d, DepthwiseConv2d, runs_depthwise)]
