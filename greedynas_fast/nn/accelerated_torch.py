"""Layers of torch that run as fused operations; see `accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from greedynas_fast.nn.backend import (
    BATCH_NORMS,
    Fusable,
    activation_name,
    has_hooks,
    has_operation,
    is_mixconv,
    padding_of,
    run_depthwise,
)
from greedynas_fast.nn.fused_norm import IDENTITY, run_norm_act
from greedynas_fast.ops.pointwise import pointwise

# The class to replace, the class that replaces it, and whether that can run a given layer.
Swap = tuple[type[nn.Module], type[nn.Module], Callable[[Any], bool]]

# Pixels of a batch. With more, our 1x1 convolutions take 0.4 to 0.9 of the time of torch's, with fewer 0.9 to 1.1
# (Zen 4 with AVX2, one thread).
_MANY_ROWS = 4096


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


class PointwiseConv2d(Fusable, nn.Conv2d):
    """A 1x1 convolution without bias."""

    def forward(self, x: Tensor) -> Tensor:
        """What `nn.Conv2d` does."""
        if _has_many_rows(x) and self.fuses(x):
            return pointwise(x, self.weight)
        return super().forward(x)

    def _stands_for(self, layer: nn.Module) -> bool:
        return layer is self and is_pointwise(self)


class FusedBatchNorm2d(Fusable, nn.BatchNorm2d):
    """Batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        """What `nn.BatchNorm2d` does."""
        y = run_norm_act(self, self, IDENTITY, x) if _is_channels_last(x) else None
        return super().forward(x) if y is None else y


BATCH_NORMS.append(FusedBatchNorm2d)


class FusedSequential(nn.Sequential):
    """Layers in turn, of which batch norms and the activations that follow them are one operation."""

    def forward(self, x: Tensor) -> Tensor:
        """What `nn.Sequential` does."""
        rest = list(reversed(self._modules.values()))
        while rest:
            layer = rest.pop()
            y = _run_both(layer, rest[-1], x) if rest else None
            if y is None:
                x = layer(x)
            else:
                x = y
                rest.pop()
        return x


def _run_both(layer: nn.Module, following: nn.Module, x: Tensor) -> Tensor | None:
    """What the second layer makes of the first one's result, if they are a batch norm and its activation."""
    if not isinstance(layer, FusedBatchNorm2d) or activation_name(following) is None:
        return None
    return None if has_hooks(layer) or not _is_channels_last(x) else run_norm_act(layer, layer, following, x)


def _has_many_rows(x: Tensor) -> bool:
    """Whether our products are the faster ones."""
    return _is_channels_last(x) and x.shape[0] * x.shape[2] * x.shape[3] >= _MANY_ROWS


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


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


def runs_sequence(layers: nn.Sequential) -> bool:
    """Whether a batch norm is followed by an activation."""
    return any(
        type(layer) in BATCH_NORMS and layer.affine and activation_name(following) is not None
        for layer, following in pairwise(layers)
    )


SWAPS: list[Swap] = [
    (nn.Conv2d, DepthwiseConv2d, runs_depthwise),
    (nn.Conv2d, PointwiseConv2d, is_pointwise),
    (nn.BatchNorm2d, FusedBatchNorm2d, lambda norm: norm.affine),
    (nn.Sequential, FusedSequential, runs_sequence),
]
