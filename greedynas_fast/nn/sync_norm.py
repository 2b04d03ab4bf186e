"""Batch norm over the batches of all processes together, on CPUs and GPUs.

torch's `nn.SyncBatchNorm` runs on GPUs alone; this one is made of torch's operators and two sums over the ranks, one in
each direction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from greedynas_fast.errors import InputError

AddUp = Callable[[Tensor], Any]
"""Begins to add up a tensor over all ranks in place; what it returns has `wait()`."""


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all ranks; see `synchronise_norms`."""

    add_up: AddUp | None = None

    @property
    def synchronises(self) -> bool:
        """Whether the next input is normalised by statistics of all ranks."""
        return self.add_up is not None and (self.training or self.running_mean is None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the same on all ranks but for N, which may differ."""
        if self.synchronises:
            return self.normalise(x)
        plain: Tensor = super().forward(x)
        return plain

    def normalise(self, x: Tensor) -> Tensor:
        """Batch norm by the statistics of all ranks."""
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
    """Make all batch norms in `module`, torch's or timm's, take their statistics over all ranks.

    Names and parameters stay.

    Args:
        module: of which all ranks have a copy and run the same layers in the same order.
        add_up: begins to add up a tensor over the ranks in place.

    Raises:
        InputError: a batch norm of another class; nothing has been changed then.
    """
    forms = _forms()
    norms = {name: part for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, norm in norms.items():
        if type(norm) not in forms and not isinstance(norm, SyncBatchNorm2d):
            raise InputError(f"batch norm over all processes: there is none for {name}, a {type(norm).__name__}")
    for norm in norms.values():
        norm.__class__ = forms.get(type(norm), type(norm))
        assert isinstance(norm, SyncBatchNorm2d)
        norm.add_up = add_up


def _forms() -> dict[type[nn.Module], type[SyncBatchNorm2d]]:
    """What each class becomes. A model with layers of timm cannot be where timm is not loaded."""
    if "timm" not in sys.modules:
        return {nn.BatchNorm2d: SyncBatchNorm2d}
    from greedynas_fast.nn import sync_norm_timm

    return {nn.BatchNorm2d: SyncBatchNorm2d, **sync_norm_timm.FORMS}


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
    """Ranks hold parts of different sizes. They add up in float64: sums of squares would cancel in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, add_up: AddUp
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        own_variance, own_mean = (m.double() for m in torch.var_mean(x.float(), (0, 2, 3), correction=0))
        own = torch.cat((own_mean, own_variance + own_mean.square(), own_mean.new_ones(1)))
        sums = own * (x.numel() // channels)
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
        own = torch.stack([g.sum((0, 2, 3), dtype=torch.float64) for g in (grad, grad * normal)])
        sums = own.clone()
        ctx.add_up(sums).wait()
        grad_bias, grad_weight = sums / count
        grad_x = (grad - _spread(grad_bias) - normal * _spread(grad_weight)) * _spread(weight * inverse)
        # The gradients of the parameters are this rank's: they are added up with all others.
        return grad_x.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _spread(values: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1], float32."""
    return values.float()[:, None, None]
