"""What tests of layers share: everything that a layer computes, and who watches operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def results(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients of x and of all parameters, running statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
    return [y.detach(), *gradients, *(value.detach().clone() for value in module.buffers())]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """As near as float32 is where sums are taken in another order."""
    for mine, theirs in zip(found, expected, strict=True):
        scale = max(float(theirs.abs().max()), 1.0)
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=3e-5 * scale)


class Operators(TorchDispatchMode):
    """Notes which operators run.

    Attributes:
        seen: their names, `greedynas.bn_act_training.default` for instance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))
