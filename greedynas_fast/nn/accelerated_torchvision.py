"""Layers of torchvision that run as fused operations; see `accelerate`. Imported only where torchvision is."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.efficientnet import MBConv
from torchvision.models.mnasnet import _InvertedResidual as MnasBlock
from torchvision.models.mobilenetv2 import InvertedResidual as MobileNetV2Block
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleUnit
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from greedynas_fast.nn.accelerated_torch import (
    FusedSequential,
    Swap,
    depthwise_groups,
    is_depthwise,
    is_pointwise,
    runs_sequence,
)
from greedynas_fast.nn.backend import Fusable, activation_name, name_of, run_layers
from greedynas_fast.nn.fused_residual import BlockLayers, GateLayers, run_inverted_residual
from greedynas_fast.ops.shuffle import channel_shuffle
from greedynas_fast.ops.squeeze_excite import squeeze_excite


class FusedConv2dNormActivation(FusedSequential, Conv2dNormActivation):  # type: ignore[misc]
    """Convolution, batch norm, activation."""


class FusedSqueezeExcitation(Fusable, SqueezeExcitation):  # type: ignore[misc]
    """Squeeze-and-excitation."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's layer does."""
        if self.fuses(x):
            gate = _gate_of(self).parameters()
            return squeeze_excite(x, *gate[:4], activation=gate.activation, gate=gate.gate)
        y: Tensor = super().forward(x)
        return y


class FusedInvertedResidual(Fusable, InvertedResidual):  # type: ignore[misc]
    """The whole block of MobileNetV3."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's block does."""
        y = run_inverted_residual(self, _layers_of, x)
        return super().forward(x) if y is None else y


class AcceleratedMBConv(Fusable, MBConv):  # type: ignore[misc]
    """The whole block of EfficientNet, but for its stochastic depth. `FusedMBConv` is another block of torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's block does."""
        y = run_inverted_residual(self, _layers_before_depth, x)
        if y is None:
            y = super().forward(x)
        elif self.use_res_connect:
            y = cast("nn.Module", self.stochastic_depth)(y) + x
        return y


class FusedMobileNetV2Block(Fusable, MobileNetV2Block):  # type: ignore[misc]
    """The whole block of MobileNetV2."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's block does."""
        y = run_inverted_residual(self, _layers_without_gate, x)
        return super().forward(x) if y is None else y


class FusedMnasBlock(Fusable, MnasBlock):  # type: ignore[misc]
    """The whole block of MNASNet."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's block does."""
        y = run_inverted_residual(self, _layers_without_gate, x)
        return super().forward(x) if y is None else y


def _layers_before_depth(block: Any) -> BlockLayers:
    """Of a block that `_parts` accepts, without the addition of x, which stochastic depth comes before."""
    return _layers_of(block)._replace(residual=False)


def _layers_in_turn(block: Any) -> list[nn.Module]:
    """Of a block of MobileNetV2, where some are grouped, or of MNASNet."""
    parts = block.conv if isinstance(block, MobileNetV2Block) else block.layers
    return [layer for part in parts for layer in (list(part.children()) or [part])]


def _layers_without_gate(block: Any) -> BlockLayers:
    """Of a block that `_runs_without_gate` accepts."""
    *expand, depthwise, norm2, activation, project, norm3 = cast("list[Any]", _layers_in_turn(block))
    return BlockLayers(
        (expand[0], expand[1]) if expand else None,
        ([depthwise], norm2),
        (project, norm3),
        gate=None,
        activation=activation,
        residual=block.use_res_connect if isinstance(block, MobileNetV2Block) else block.apply_residual,
    )


def _layers_of(block: Any) -> BlockLayers:
    """Of a block that `_parts` accepts."""
    parts = _parts(block)
    assert parts is not None
    expand, depthwise, gate, project = parts
    return BlockLayers(
        None if expand is None else (expand[0], expand[1]),
        ([depthwise[0]], depthwise[1]),
        (project[0], project[1]),
        None if gate is None else _gate_of(gate),
        activation=depthwise[2],
        residual=block.use_res_connect,
    )


class FusedShuffleUnit(Fusable, ShuffleUnit):  # type: ignore[misc]
    """The unit of ShuffleNetV2, whose shuffle follows the concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        """What torchvision's unit does."""
        return _run_unit(self, x) if self.fuses(x) else super().forward(x)


def _run_unit(unit: Any, x: Tensor) -> Tensor:
    kept, moved = x.chunk(2, dim=1) if unit.stride == 1 else (run_layers(unit.branch1, x), x)
    return channel_shuffle(torch.cat((kept, run_layers(unit.branch2, moved)), dim=1))


def _gate_of(layer: SqueezeExcitation) -> GateLayers:
    """What the operations need to know of a layer that `_runs_gate` accepts."""
    gate = "sigmoid" if isinstance(layer.scale_activation, nn.Sigmoid) else "hard_sigmoid"
    return GateLayers(layer.fc1, layer.fc2, name_of(cast("nn.Module", layer.activation)), gate)


def _runs_gate(layer: Any) -> bool:
    return activation_name(layer.activation) is not None and type(layer.scale_activation) in (
        nn.Sigmoid,
        nn.Hardsigmoid,
    )


def _parts(block: InvertedResidual | MBConv) -> tuple[Any, Any, SqueezeExcitation | None, Any] | None:
    """Expansion, depthwise part, gate and projection; None if the operation does not have them all."""
    layers = list(block.block)
    expand = layers.pop(0) if is_pointwise(layers[0][0]) else None
    if len(layers) not in (2, 3):
        return None
    depthwise, project = layers[0], layers[-1]
    gate = layers[1] if len(layers) == 3 else None
    norms = [part[1] for part in (expand, depthwise, project) if part is not None]
    acts = [part[2] for part in (expand, depthwise) if part is not None]
    runs = (
        depthwise_groups(depthwise[0]) is not None
        and is_pointwise(project[0])
        and len(project) == 2
        and all(isinstance(norm, nn.BatchNorm2d) and norm.affine for norm in norms)
        and len({type(act) for act in acts}) == 1
        and activation_name(acts[0]) is not None
        and (gate is None or (isinstance(gate, SqueezeExcitation) and _runs_gate(gate)))
    )
    return (expand, depthwise, gate, project) if runs else None


def _runs_without_gate(block: Any) -> bool:
    """Whether it is [1x1 convolution, norm, activation], depthwise convolution, norm, activation, 1x1, norm."""
    layers = _layers_in_turn(block)
    if len(layers) not in (5, 8):
        return False
    *expand, depthwise, norm2, act, project, norm3 = layers
    norms = [*expand[1:2], norm2, norm3]
    return (
        (not expand or (is_pointwise(expand[0]) and type(expand[2]) is type(act)))
        and is_depthwise(depthwise)
        and is_pointwise(project)
        and all(isinstance(norm, nn.BatchNorm2d) and norm.affine for norm in norms)
        and activation_name(act) is not None
    )


SWAPS: list[Swap] = [
    (Conv2dNormActivation, FusedConv2dNormActivation, runs_sequence),
    (SqueezeExcitation, FusedSqueezeExcitation, _runs_gate),
    (InvertedResidual, FusedInvertedResidual, lambda block: _parts(block) is not None),
    (MBConv, AcceleratedMBConv, lambda block: _parts(block) is not None),
    (MobileNetV2Block, FusedMobileNetV2Block, _runs_without_gate),
    (MnasBlock, FusedMnasBlock, _runs_without_gate),
    (ShuffleUnit, FusedShuffleUnit, lambda block: True),
]
