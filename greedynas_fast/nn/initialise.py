"""Starting weights as a pure function of a generator."""

from __future__ import annotations

import math

import torch
from torch import nn

_LINEAR_STD = 0.01


def materialise(module: nn.Module) -> None:
    """Give what a module on the meta device holds memory on the CPU, its values undefined.

    As `module.to_empty(device="cpu")`, which has torch import its symbolic shapes, and sympy with them, for 0.4 s.
    """
    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))  # type: ignore[no-untyped-call]


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Overwrite every weight and buffer of `module`, drawing from `generator` alone, in the order of `modules()`.

    Convolutions: Kaiming normal, fan-out (`kernel area x out / groups`, so that a depthwise filter counts its area);
    batch norm: weight 1, bias 0, fresh statistics; linear: normal with deviation 0.01; all biases 0.

    Args:
        module: on the device of `generator`.
        generator: advanced by the call. The global generators stay as they are.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            kernel_area = part.kernel_size[0] * part.kernel_size[1]
            fan_out = kernel_area * part.out_channels // part.groups
            part.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
        elif isinstance(part, nn.Linear):
            part.weight.normal_(0.0, _LINEAR_STD, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
            continue
        else:
            continue
        if part.bias is not None:
            part.bias.zero_()
