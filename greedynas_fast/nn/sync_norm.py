"""Batch norm over the batches of all processes together, on CPUs and GPUs.

torch's `nn.SyncBatchNorm` runs on GPUs alone; this one is made of torch's operators and two sums over the ranks, one in
each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AddUp = Callable[[Tensor], Any]
"""Begins to add up a tensor over all ranks in place; what it returns has `wait()`."""


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all ranks; see `synchronise_norms`."""

    add_up: AddUp | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the same on all ranks but for N, which may differ."""
        if self.add_up is None or not (self.training or self.running_mean is None):
            plain: Tensor = super().forward(x)
            return plain
        y: Tensor
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.add_up)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(mean, variance, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def synchronise_norms(module: nn.Module, add_up: AddUp) -> None:
    """Make all plain batch norms in `module` take their statistics over all ranks; names and parameters stay.

    Args:
        module: of which all ranks have a copy and run the same layers in the same order.
        add_up: begins to add up a tensor over the ranks in place.
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncBatchNorm2d
        if isinstance(part, SyncBatchNorm2d):
            part.add_up = add_up


@contextmanager
def local_norms(module: nn.Module) -> Iterator[None]:
    """While this is open, batch norms of `module` do not ask other ranks, which may be doing something else."""
    norms = [part for part in module.modules() if isinstance(part, SyncBatchNorm2d)]
    held = [norm.add_up for norm in norms]
    for norm in norms:
        norm.add_up = None
    try:
        yield
    finally:
        for norm, add_up in zip(norms, held, strict=True):
            norm.add_up = add_up


class _Normalise(torch.autograd.Function):
    """Statistics are float64 sums: ranks hold parts of different sizes, and sums of squares would cancel in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, add_up: AddUp
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.double()
        channels = x.shape[1]
        sums = x.new_empty(2 * channels + 1, dtype=torch.float64)
        sums[:channels] = values.sum((0, 2, 3))
        sums[channels:-1] = values.square().sum((0, 2, 3))
        sums[-1] = x.numel() // channels
        add_up(sums).wait()
        count = sums[-1]
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean.square()).clamp_(min=0)
        inverse = (variance + eps).rsqrt()
        scale = inverse * weight
        y = (x * _spread(scale) + _spread(bias - mean * scale)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.add_up = add_up
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        normal = (x - _spread(mean)) * _spread(inverse)
        own = torch.stack((grad.double().sum((0, 2, 3)), (grad.double() * normal).sum((0, 2, 3))))
        sums = own.clone()
        ctx.add_up(sums).wait()
        grad_bias, grad_weight = sums / count
        grad_x = (grad - _spread(grad_bias) - normal * _spread(grad_weight)) * _spread(weight * inverse)
        # The gradients of the parameters are this rank's: they are added up with all others.
        return grad_x.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _spread(values: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1], float32."""
    return values.float()[:, None, None]
