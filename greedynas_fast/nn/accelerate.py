"""Drop-in acceleration: layers of torch, timm and torchvision made to run as fused operations, where they are.

A layer stays the object that it was, with its parameters, buffers, names and hooks; only its class is replaced by one
that derives from it, in `accelerated_torch`, `accelerated_timm` and `accelerated_torchvision`. So state dicts, copies,
pickles, optimizers and wrappers do not notice. What a fused operation does not take (see `nn.backend`) runs as before.
"""

from __future__ import annotations

import sys

from torch import nn

from greedynas_fast.nn import accelerated_torch
from greedynas_fast.nn.accelerated_torch import Swap


def accelerate(model: nn.Module, *, dry_run: bool = False) -> list[str]:
    """Make layers of a model run as fused operations, in place.

    Swapped are depthwise convolutions, with or without a bias, 1x1 convolutions without one, batch norms, and
    `nn.Sequential` where an activation follows a batch norm; of timm `InvertedResidual`, `DepthwiseSeparableConv`,
    `UniversalInvertedResidual`, `MixedConv2d`, `Conv2dSame` where it is depthwise, `SqueezeExcite` and
    `BatchNormAct2d`; of torchvision the inverted residuals of MobileNetV2, MobileNetV3, EfficientNet and MNASNet,
    `SqueezeExcitation`, `Conv2dNormActivation` and ShuffleNetV2's unit.
    Activations: ReLU, ReLU6, hard-swish, SiLU. The model should be in channels-last memory, else not all of it is
    faster: `model.to(memory_format=torch.channels_last)`.

    Args:
        model: any module. A second call finds nothing left to swap.
        dry_run: only say what would be swapped.

    Returns:
        A line for each layer, `name: class`, in the order of `named_modules()`.
    """
    swaps = _swaps()
    swapped = []
    for name, module in model.named_modules():
        for old, new, runs in swaps:
            if type(module) is old and runs(module):
                swapped.append(f"{name or '(the model)'}: {old.__module__.split('.')[0]} {old.__name__}")
                if not dry_run:
                    module.__class__ = new
                break
    return swapped


def _swaps() -> list[Swap]:
    """Those of the libraries that are loaded: a model with layers of another one cannot be."""
    swaps = list(accelerated_torch.SWAPS)
    if "timm" in sys.modules:
        from greedynas_fast.nn import accelerated_timm

        swaps += accelerated_timm.SWAPS
    if "torchvision" in sys.modules:
        from greedynas_fast.nn import accelerated_torchvision

        swaps += accelerated_torchvision.SWAPS
    return swaps
