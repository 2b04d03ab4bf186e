"""Layers of timm that run as fused operations; see `accelerate`. Imported only where timm is."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, ConvNormAct, DropPath, MixedConv2d
from timm.models._efficientnet_blocks import (
    DepthwiseSeparableConv,
    InvertedResidual,
    SqueezeExcite,
    UniversalInvertedResidual,
)
from torch import Tensor, nn

from greedynas_fast.nn.accelerated_torch import (
    DepthwiseConv2d,
    Swap,
    depthwise_groups,
    is_pointwise,
    runs_depthwise,
)
from greedynas_fast.nn.backend import SAME_UPPER, Fusable, activation_name, name_of, run_depthwise
from greedynas_fast.nn.fused_norm import run_norm_act
from greedynas_fast.nn.fused_residual import BlockLayers, GateLayers, run_inverted_residual
from greedynas_fast.ops.squeeze_excite import squeeze_excite

SAME_UPPER.append(Conv2dSame)


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):  # type: ignore[misc]
    """A depthwise convolution padded as TensorFlow does, with or without a bias."""


class FusedMixedConv2d(Fusable, MixedConv2d):  # type: ignore[misc]
    """Depthwise MixConv."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's layer does."""
        if self.fuses(x):
            return run_depthwise(cast("list[nn.Conv2d]", list(self.children())), x)
        y: Tensor = super().forward(x)
        return y


class FusedBatchNormAct2d(Fusable, BatchNormAct2d):  # type: ignore[misc]
    """Batch norm and activation."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's layer does."""
        y = run_norm_act(self, self, cast("nn.Module", self.act), x)
        if y is None:
            y = super().forward(x)
        return y


class FusedSqueezeExcite(Fusable, SqueezeExcite):  # type: ignore[misc]
    """Squeeze-and-excitation of the EfficientNet family."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's layer does."""
        if self.fuses(x):
            gate = _gate_of(self).parameters()
            return squeeze_excite(x, *gate[:4], activation=gate.activation, gate=gate.gate)
        y: Tensor = super().forward(x)
        return y


class FusedInvertedResidual(Fusable, InvertedResidual):  # type: ignore[misc]
    """The whole block."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's block does."""
        y = _run_block(self, x)
        return super().forward(x) if y is None else y


class FusedDepthwiseSeparableConv(Fusable, DepthwiseSeparableConv):  # type: ignore[misc]
    """The block without expansion."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's block does."""
        y = _run_block(self, x)
        return super().forward(x) if y is None else y


class FusedUniversalInvertedResidual(Fusable, UniversalInvertedResidual):  # type: ignore[misc]
    """The block of MobileNetV4, from the expansion to the projection."""

    def forward(self, x: Tensor) -> Tensor:
        """What timm's block does."""
        return _run_universal(self, x)


def _run_universal(block: Any, x: Tensor) -> Tensor:
    inner = block.dw_start(x)
    y = run_inverted_residual(block, _layers_of_universal, inner)
    if y is not None and _adds_inside(block):
        return y
    if y is None:
        y = block.pw_proj(block.se(block.dw_mid(block.pw_exp(inner))))
    result: Tensor = block.layer_scale(block.dw_end(y))
    return block.drop_path(result) + x if block.has_skip else result


def _adds_inside(block: Any) -> bool:
    """Whether what is added to the block's result is what the expansion reads."""
    others = (block.dw_start, block.dw_end, block.layer_scale, block.drop_path)
    return bool(block.has_skip) and all(isinstance(layer, nn.Identity) for layer in others)


def _layers_of_universal(block: Any) -> BlockLayers:
    """Of a block that `_runs_universal` accepts."""
    convs = depthwise_groups(block.dw_mid.conv)
    assert convs is not None
    return BlockLayers(
        (block.pw_exp.conv, block.pw_exp.bn),
        (convs, block.dw_mid.bn),
        (block.pw_proj.conv, block.pw_proj.bn),
        _gate_of(block.se) if isinstance(block.se, SqueezeExcite) else None,
        activation=block.dw_mid.bn.act,
        residual=_adds_inside(block),
    )


def _run_block(block: Any, x: Tensor) -> Tensor | None:
    """A block that `_runs_block` accepts; None where it does not fuse."""
    y = run_inverted_residual(block, _layers_of, x)
    return block.drop_path(y) + x if y is not None and _drops(block) else y


def _drops(block: Any) -> bool:
    """Whether x is added to the result after a layer that drops some of it."""
    return block.has_skip and not isinstance(block.drop_path, nn.Identity)


def _layers_of(block: Any) -> BlockLayers:
    pointwise, norms = _pointwise_and_norms(block)
    convs = depthwise_groups(block.conv_dw)
    assert convs is not None
    return BlockLayers(
        (pointwise[0], norms[0]) if len(pointwise) == 2 else None,
        (convs, norms[-2]),
        (pointwise[-1], norms[-1]),
        _gate_of(block.se) if isinstance(block.se, SqueezeExcite) else None,
        activation=norms[-2].act,
        residual=block.has_skip and not _drops(block),
        weight_of=_pointwise_weight,
        parts_of=_pointwise_parts,
    )


def _pointwise_and_norms(block: Any) -> tuple[list[Any], list[Any]]:
    """In their order; timm numbers the layers of its two blocks differently."""
    if isinstance(block, DepthwiseSeparableConv):
        return [block.conv_pw], [block.bn1, block.bn2]
    return [block.conv_pw, block.conv_pwl], [block.bn1, block.bn2, block.bn3]


def _pointwise_weight(conv: nn.Module) -> Tensor:
    """The weight [C_out, C_in / G, 1, 1] of a convolution that `_runs_pointwise` accepts, G groups being one operation.

    Groups of unequal size become blocks of a matrix with zeros elsewhere. The products with zeros cost less than to
    split, to convolve each group by itself and to join what comes out.
    """
    if isinstance(conv, MixedConv2d):
        if parts := _pointwise_parts(conv):
            return torch.cat([part.weight for part in parts])
        weights = [cast("nn.Conv2d", part).weight for part in conv.children()]
        matrix: Tensor = torch.block_diag(*(weight.flatten(1) for weight in weights))  # type: ignore[no-untyped-call]
        return matrix[:, :, None, None]
    return cast("Tensor", conv.weight)


def _pointwise_parts(conv: nn.Module) -> list[nn.Conv2d]:
    """The groups of a mixed convolution, if there are several and all of one size."""
    parts = cast("list[nn.Conv2d]", list(conv.children())) if isinstance(conv, MixedConv2d) else []
    return parts if len(parts) > 1 and len({part.weight.shape for part in parts}) == 1 else []


def _gate_of(layer: Any) -> GateLayers:
    """What the operations need to know of a layer that `_runs_gate` accepts."""
    gate = "sigmoid" if isinstance(layer.gate, nn.Sigmoid) else "hard_sigmoid"
    return GateLayers(layer.conv_reduce, layer.conv_expand, name_of(layer.act1), gate)


def _runs_gate(layer: Any) -> bool:
    return activation_name(layer.act1) is not None and type(layer.gate) in (nn.Sigmoid, nn.Hardsigmoid)


def _runs_pointwise(conv: nn.Module) -> bool:
    """Whether this is a plain 1x1 convolution without bias, or a mixed one of nothing but these."""
    return all(is_pointwise(part) for part in (conv.children() if isinstance(conv, MixedConv2d) else [conv]))


def _runs_norm(norm: Any) -> bool:
    return (
        isinstance(norm, BatchNormAct2d)
        and norm.affine
        and isinstance(norm.drop, nn.Identity)
        and activation_name(norm.act) is not None
    )


def _runs_block(block: Any) -> bool:
    """Whether the operation has all that this block has."""
    pointwise, norms = _pointwise_and_norms(block)
    return (
        block.conv_s2d is None
        and all(_runs_pointwise(conv) for conv in pointwise)
        and depthwise_groups(block.conv_dw) is not None
        and _run_together(norms, block.se)
        and isinstance(block.aa, nn.Identity)
        and isinstance(block.drop_path, nn.Identity | DropPath)
    )


def _runs_universal(block: Any) -> bool:
    """Whether the operation has what this block has in its middle, depthwise convolution included."""
    parts = [block.pw_exp, block.dw_mid, block.pw_proj]
    return (
        all(isinstance(part, ConvNormAct) and getattr(part, "aa", None) is None for part in parts)
        and is_pointwise(block.pw_exp.conv)
        and depthwise_groups(block.dw_mid.conv) is not None
        and is_pointwise(block.pw_proj.conv)
        and _run_together([part.bn for part in parts], block.se)
    )


def _run_together(norms: list[Any], gate: nn.Module) -> bool:
    """Whether the operation has these norms of a block, with their activations, and the gate."""
    return (
        all(_runs_norm(norm) for norm in norms)
        and len({type(norm.act) for norm in norms[:-1]}) == 1
        and isinstance(norms[-1].act, nn.Identity)
        and (isinstance(gate, nn.Identity) or (isinstance(gate, SqueezeExcite) and _runs_gate(gate)))
    )


SWAPS: list[Swap] = [
    (Conv2dSame, DepthwiseConv2dSame, runs_depthwise),
    (MixedConv2d, FusedMixedConv2d, lambda layer: depthwise_groups(layer) is not None),
    (BatchNormAct2d, FusedBatchNormAct2d, _runs_norm),
    (SqueezeExcite, FusedSqueezeExcite, _runs_gate),
    (InvertedResidual, FusedInvertedResidual, _runs_block),
    (DepthwiseSeparableConv, FusedDepthwiseSeparableConv, _runs_block),
    (UniversalInvertedResidual, FusedUniversalInvertedResidual, _runs_universal),
]
