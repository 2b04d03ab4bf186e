"""Batch normalisation, residual addition and activation in one; https://arxiv.org/abs/1502.03167.

The backward pass recomputes the normalised value from x, so x, the mean and the variance are all that is kept.
float32 and bf16 on the CPU run the compiled core, everything else `greedynas_fast.reference.bn_act`.

Statistics of several processes: `combine_statistics` of what `bn_statistics` gives in each, and `bn_act(statistics=)`.
The gradient does not flow through statistics that are given, so this is right for evaluation and for frozen
statistics; training needs the exchange of the two sums of the backward pass as well, as `torch.nn.SyncBatchNorm` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.reference import bn_act as reference

from . import bn_core as core
from .rows import backend

__all__ = ["backend", "bn_act", "bn_statistics", "combine_statistics"]


def bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "identity",
    residual: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """Normalise as `torch.nn.BatchNorm2d` does, add a residual, activate: act(bn(x) + residual).

    Args:
        x: [N, C, H, W], floating. Best in channels-last memory (a slice of channels will do); other layouts are copied.
        weight: [C], or None for ones.
        bias: [C], or None for zeros.
        running_mean: [C]; used in evaluation, updated in place in training, unless there are none of both.
        running_var: [C]; of the unbiased variance.
        training: normalise with the statistics of x.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        residual: of x's shape and dtype.
        statistics: float [3, C] of `bn_statistics` to normalise with, whatever `training` says. They are constants to
            the gradient, and the running statistics are left alone.

    Returns:
        [N, C, H, W] of x's dtype, channels-last from the core. An empty x leaves the running statistics alone.

    Raises:
        InputError: shapes, dtypes or names that do not fit, evaluation without statistics, or a single value a channel
            in training.
    """
    _check(x, weight, bias, running_mean, running_var, training, activation, residual, statistics)
    if backend(x, on_cuda=True) == "reference":
        return reference.bn_act(
            x,
            weight,
            bias,
            running_mean,
            running_var,
            training=training,
            momentum=momentum,
            eps=eps,
            activation=activation,
            residual=residual,
            statistics=statistics,
        )
    layer = (weight, bias, residual, eps, activation)
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    if not training or statistics is not None:
        moments = _given_moments(running_mean, running_var, statistics)
        y: Tensor = _Normalise.apply(x, moments, *layer) if needs_grad else core.forward_op(x, moments, *layer)
        return y
    y, moments = _TrainingNormalise.apply(x, *layer) if needs_grad else core.training_op(x, *layer)
    if running_mean is not None and running_var is not None and x.numel():
        core.update_op(running_mean, running_var, moments, x.numel() // x.shape[1], momentum)
    return y


def bn_statistics(x: Tensor) -> Tensor:
    """Count, mean and sum of squared differences from the mean of each channel: [N, C, H, W] -> float32 [3, C].

    Raises:
        InputError: x is not four-dimensional and floating.
    """
    _check_x(x)
    if backend(x, on_cuda=True) == "reference":
        return reference.bn_statistics(x)
    mean, variance = core.moments_op(x.detach()).unbind()
    count = x.numel() // max(x.shape[1], 1)
    return torch.stack([torch.full_like(mean, count), mean, variance * count])


def combine_statistics(parts: Tensor | Sequence[Tensor]) -> Tensor:
    """Join statistics of several batches: [K, 3, C], or K tensors [3, C], -> float32 [3, C].

    Raises:
        InputError: no part, or another shape.
    """
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or shape[0] != 3:
        raise InputError(f"combine_statistics: expected one or more parts [3, C], got {sorted(shapes) or 'none'}")
    return reference.combine_statistics(parts)


class _Normalise(torch.autograd.Function):
    """Normalise with moments that are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, moments: Tensor, *layer: Any) -> Tensor:
        y: Tensor = core.forward_op(x, moments, *layer)
        _save(ctx, x, moments, layer)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        x, *parameters = _gradients(ctx, grads[0], (needed[0], *needed[2:5]), False)
        return (x, None, *parameters, None, None)


class _TrainingNormalise(torch.autograd.Function):
    """Normalise with the moments of x; they are the second result, without a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layer: Any) -> tuple[Tensor, Tensor]:
        y, moments = core.training_op(x, *layer)
        ctx.mark_non_differentiable(moments)
        ctx.set_materialize_grads(False)  # no zeros for the moments
        _save(ctx, x, moments, layer)
        return y, moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 6
        return (*_gradients(ctx, grads[0], ctx.needs_input_grad[:4], True), None, None)


def _save(ctx: Any, x: Tensor, moments: Tensor, layer: tuple[Any, ...]) -> None:
    weight, bias, residual, eps, activation = layer
    ctx.save_for_backward(x, moments, weight, bias, residual)
    ctx.options = (eps, activation)


def _gradients(
    ctx: Any, grad: Tensor, needed: tuple[bool, ...], batch_statistics: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and residual."""
    need_x, need_weight, need_bias, need_residual = needed
    x, weight, bias, residual = core.backward_op(
        grad,
        *ctx.saved_tensors,
        *ctx.options,
        batch_statistics,
        (need_x, need_weight, need_bias, need_residual),
    )
    return (
        x if need_x else None,
        weight if need_weight else None,
        bias if need_bias else None,
        residual if need_residual else None,
    )


def _given_moments(running_mean: Tensor | None, running_var: Tensor | None, statistics: Tensor | None) -> Tensor:
    """Mean and biased variance: float32 [2, C]."""
    if statistics is not None:
        count, mean, squares = statistics.detach().float().unbind()
        return torch.stack([mean, squares / count])
    assert running_mean is not None
    assert running_var is not None
    return torch.stack([running_mean, running_var]).float()


def _check_x(x: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"bn_act: x: expected a floating [N, C, H, W], got {x.dtype} {list(x.shape)}")


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    activation: str,
    residual: Tensor | None,
    statistics: Tensor | None,
) -> None:
    _check_x(x)
    channels = x.shape[1]
    for name, value in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if value is not None and (value.shape != (channels,) or not value.is_floating_point()):
            raise InputError(f"bn_act: {name}: expected floating [{channels}], got {value.dtype} {list(value.shape)}")
    if (running_mean is None) != (running_var is None):
        raise InputError("bn_act: expected both running_mean and running_var or neither, got one of them")
    if statistics is not None:
        if statistics.shape != (3, channels):
            raise InputError(f"bn_act: statistics: expected [3, {channels}], got {list(statistics.shape)}")
    elif not training and running_mean is None:
        raise InputError("bn_act: running_mean: expected one in evaluation, got None")
    elif training and x.numel() == channels:
        raise InputError(f"bn_act: x: expected more than one value a channel in training, got {list(x.shape)}")
    if activation not in core.ACTIVATIONS:
        raise InputError(f"bn_act: activation: expected identity, relu, hard_swish, silu or relu6, got {activation!r}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InputError(
            f"bn_act: residual: expected {x.dtype} {list(x.shape)} like x, got {residual.dtype} {list(residual.shape)}"
        )
