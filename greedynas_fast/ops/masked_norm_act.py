"""Op-masked batch norm, residual and activation: a batch of several paths, each with its own statistics.

A batch is a ragged activation (`ragged.Ragged`); groups of width 0 are masked: they take no room, work
or gradient. Weights and biases lie in a flat tensor, the parameter bank, at offsets a group; groups of one
operation share them.
float32, bf16 and fp16 on CUDA run Triton kernels, everything else `greedynas_fast.reference.masked_norm_act`.

    moments = masked_moments(x, layout)                                       # or those that a product has given
    scale_shift = masked_scale_shift(moments, layout, bank, weights, biases)
    y = masked_norm_act(x, layout, scale_shift, activation="hard_swish", residual=r)

Each step is differentiable once, also through the moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from greedynas_fast.errors import InputError
from greedynas_fast.reference import masked_norm_act as reference

from . import masked_norm_core  # noqa: F401  registers the operators
from .bn_core import ACTIVATIONS
from .ragged import Ragged
from .triton_kernels import backend

__all__ = ["masked_moments", "masked_norm_act", "masked_scale_shift"]

_OPS = torch.ops.greedynas


def layout_parts(layout: Ragged) -> tuple[tuple[int, ...], int, int, tuple[int, ...]]:
    """A layout as operators take it."""
    return layout.samples, layout.height, layout.width, layout.widths


def masked_moments(x: Tensor, layout: Ragged) -> Tensor:
    """Means and biased variances of the channels of each group.

    Args:
        x: flat, of the layout.
        layout: of x.

    Returns:
        float32 [2, channels of all groups] (float64 for float64). Those of a group without samples mean nothing.

    Raises:
        InputError: x is not of the layout.
    """
    check_flat("masked_moments: x", x, layout)
    if backend(x) == "reference":
        return reference.masked_moments(views(x, layout))
    moments: Tensor = _Moments.apply(x, layout)
    return moments


def masked_scale_shift(
    moments: Tensor,
    layout: Ragged,
    bank: Tensor,
    weight_offsets: Sequence[int],
    bias_offsets: Sequence[int],
    *,
    eps: float = 1e-5,
    bank_grad: Tensor | None = None,
) -> Tensor:
    """Normalisation by moments as one multiplication and one addition.

    Args:
        moments: [2, channels of all groups], means and biased variances.
        layout: of what is normalised.
        bank: float32 [n], or of the dtype of the moments.
        weight_offsets: where the weight of each group begins in the bank; those of masked groups are not used.
        bias_offsets: likewise for the bias.
        eps: added to the variance.
        bank_grad: float32 [n], to which the backward pass adds the gradients of weights and biases; the bank then gets
            none from autograd.

    Returns:
        Scale and shift [2, channels of all groups].

    Raises:
        InputError: shapes or offsets that do not fit.
    """
    name = "masked_scale_shift"
    _check_vectors(f"{name}: moments", moments, layout)
    check_offsets(name, layout, bank, bank_grad, weight_offsets, bias_offsets)
    if backend(moments) == "reference":
        parameters = gather(bank, bank_grad, layout, weight_offsets, bias_offsets)
        return reference.masked_scale_shift(moments, parameters, eps)
    result: Tensor = _ScaleShift.apply(
        moments, anchored(bank, bank_grad, moments), bank_grad, layout, weight_offsets, bias_offsets, eps
    )
    return result


def masked_norm_act(
    x: Tensor,
    layout: Ragged,
    scale_shift: Tensor,
    *,
    activation: str = "identity",
    residual: Tensor | None = None,
    layout_out: Ragged | None = None,
) -> Tensor:
    """act(x * scale + shift + residual).

    Args:
        x: flat, of the layout.
        layout: of x.
        scale_shift: [2, channels of all groups] of `masked_scale_shift`.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        residual: flat, of `layout_out`, of the dtype of x. A group that is masked in x passes it on as it is.
        layout_out: of the residual: as wide as the layout wherever that is not masked. None: the layout.

    Returns:
        Flat, of `layout_out` and the dtype of x.

    Raises:
        InputError: shapes, dtypes or names that do not fit.
    """
    name = "masked_norm_act"
    out = layout if layout_out is None else layout_out
    check_flat(f"{name}: x", x, layout)
    _check_vectors(f"{name}: scale_shift", scale_shift, layout)
    check_activation(name, activation)
    if out.samples != layout.samples or (out.height, out.width) != (layout.height, layout.width):
        raise InputError(f"{name}: layout_out: expected the samples and the size of the layout, got others")
    for width, width_out in zip(layout.widths, out.widths, strict=True):
        if width not in (width_out, 0) or (residual is None and width != width_out):
            raise InputError(f"{name}: layout_out: expected widths {layout.widths} where not masked, got {out.widths}")
    if residual is not None:
        check_flat(f"{name}: residual", residual, out)
        if residual.dtype != x.dtype:
            raise InputError(f"{name}: residual: expected {x.dtype} as x, got {residual.dtype}")
    if backend(x) == "reference":
        residuals = None if residual is None else views(residual, out)
        return out.pack(reference.masked_norm_act(views(x, layout), scale_shift, activation, residuals))
    y: Tensor = _NormAct.apply(x, scale_shift, residual, layout, out, activation)
    return y


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Ragged) -> Tensor:
        moments: Tensor = _OPS.masked_moments(x, *layout_parts(layout))
        ctx.save_for_backward(x, moments)
        ctx.layout = layout
        return moments

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, moments = ctx.saved_tensors
        nowhere = [False] * ctx.layout.groups
        grad_x = _OPS.masked_join_gradients(
            None, grads[0], None, x, moments, None, *layout_parts(ctx.layout), nowhere, "identity"
        )
        return grad_x, None


class _ScaleShift(torch.autograd.Function):
    """With `bank_grad` the gradients go there, and `bank` has none; else it is a tensor like others."""

    @staticmethod
    def forward(
        ctx: Any,
        moments: Tensor,
        bank: Tensor,
        bank_grad: Tensor | None,
        layout: Ragged,
        weight_offsets: Sequence[int],
        bias_offsets: Sequence[int],
        eps: float,
    ) -> Tensor:
        where = (shown(layout, weight_offsets), shown(layout, bias_offsets), *layout_parts(layout), eps)
        result: Tensor = _OPS.masked_scale_shift(moments, bank, *where)
        ctx.save_for_backward(moments, bank)
        ctx.where, ctx.bank_grad = where, bank_grad
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        moments, bank = ctx.saved_tensors
        into = torch.zeros_like(bank) if ctx.bank_grad is None else ctx.bank_grad
        grad_moments = _OPS.masked_scale_shift_backward_(grads[0], moments, bank, into, *ctx.where)
        return grad_moments, into if ctx.bank_grad is None else None, None, None, None, None, None


class _Gather(torch.autograd.Function):
    """Weights and biases of all groups out of the bank; their gradients are added up in the order of the groups."""

    @staticmethod
    def forward(
        ctx: Any, bank: Tensor, bank_grad: Tensor | None, layout: Ragged, offsets: tuple[Sequence[int], Sequence[int]]
    ) -> Tensor:
        ctx.save_for_backward(bank)
        ctx.bank_grad, ctx.layout, ctx.offsets = bank_grad, layout, offsets
        return torch.stack(
            [torch.cat([bank[at : at + c] for at, c in zip(kind, layout.widths, strict=True)]) for kind in offsets]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (bank,) = ctx.saved_tensors
        into = torch.zeros_like(bank) if ctx.bank_grad is None else ctx.bank_grad
        for kind, offsets in enumerate(ctx.offsets):
            for group in ctx.layout.live:
                part = ctx.layout.channels(grads[0][kind], group)
                into[offsets[group] : offsets[group] + len(part)] += part
        return into if ctx.bank_grad is None else None, None, None, None


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale_shift: Tensor,
        residual: Tensor | None,
        layout: Ragged,
        out: Ragged,
        activation: str,
    ) -> Tensor:
        y: Tensor = _OPS.masked_norm_act(x, scale_shift, residual, *layout_parts(layout), out.widths, activation)
        ctx.save_for_backward(x, scale_shift, None if activation == "identity" else residual)
        ctx.where = (*layout_parts(layout), out.widths, activation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale_shift, residual = ctx.saved_tensors
        wants = ctx.needs_input_grad[2]
        grad_x, grad_scale_shift, grad_residual = _OPS.masked_norm_act_backward(
            grads[0], x, scale_shift, residual, *ctx.where, wants
        )
        if wants and ctx.where[-1] == "identity":
            grad_residual = grads[0]
        return grad_x, grad_scale_shift, grad_residual if wants else None, None, None, None


def views(flat: Tensor, layout: Ragged) -> list[Tensor]:
    """[samples, channels, height, width] of every group."""
    return [layout.view(flat, g) for g in range(layout.groups)]


def anchored(bank: Tensor, bank_grad: Tensor | None, other: Tensor | None = None) -> Tensor:
    """The bank as autograd sees it: it must call a backward pass even if only `bank_grad` is wanted.

    Args:
        bank: the bank.
        bank_grad: where its gradients go, or None.
        other: another input of the operation; if that has a gradient, the bank is left as it is.
    """
    called = not torch.is_grad_enabled() or (other is not None and other.requires_grad)
    return bank if bank_grad is None or called else bank.detach().requires_grad_()


def gather(
    bank: Tensor,
    bank_grad: Tensor | None,
    layout: Ragged,
    weight_offsets: Sequence[int],
    bias_offsets: Sequence[int],
) -> Tensor:
    """Weights and biases of all groups, [2, channels]."""
    parameters: Tensor = _Gather.apply(
        anchored(bank, bank_grad), bank_grad, layout, (shown(layout, weight_offsets), shown(layout, bias_offsets))
    )
    return parameters


def shown(layout: Ragged, offsets: Sequence[int]) -> list[int]:
    """The offsets, 0 for masked groups, so that equal layers have equal tables."""
    return [at if width else 0 for at, width in zip(offsets, layout.widths, strict=True)]


def check_flat(name: str, x: Tensor, layout: Ragged) -> None:
    """Raise InputError if x is not a flat activation of the layout."""
    if x.shape != (layout.numel,) or not x.is_floating_point() or not x.is_contiguous():
        raise InputError(f"{name}: expected contiguous floating [{layout.numel}], got {x.dtype} {list(x.shape)}")


def check_activation(name: str, activation: str) -> None:
    """Raise InputError if there is no such activation."""
    if activation not in ACTIVATIONS:
        raise InputError(f"{name}: activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_offsets(
    name: str,
    layout: Ragged,
    bank: Tensor,
    bank_grad: Tensor | None,
    weight_offsets: Sequence[int],
    bias_offsets: Sequence[int],
) -> None:
    """Raise InputError if a group's weight or bias does not lie in the bank."""
    for kind, offsets in (("weight_offsets", weight_offsets), ("bias_offsets", bias_offsets)):
        if len(offsets) != layout.groups:
            raise InputError(f"{name}: {kind}: expected one for each of {layout.groups} groups, got {len(offsets)}")
        for group, (at, width) in enumerate(zip(offsets, layout.widths, strict=True)):
            if width and not 0 <= at <= bank.numel() - width:
                raise InputError(
                    f"{name}: {kind}: {width} values at {at} of group {group} are not in a bank of {bank.numel()}"
                )
    if bank.ndim != 1 or not bank.is_contiguous() or bank.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name}: bank: expected contiguous float32 [n], got {bank.dtype} {list(bank.shape)}")
    if bank_grad is not None and (bank_grad.shape != bank.shape or bank_grad.dtype != bank.dtype):
        raise InputError(f"{name}: bank_grad: expected {bank.dtype} {list(bank.shape)}, got another dtype or shape")


def _check_vectors(name: str, vectors: Tensor, layout: Ragged) -> None:
    want = (2, layout.channel_offsets[-1])
    if vectors.shape != want or vectors.dtype not in (torch.float32, torch.float64):
        raise InputError(f"{name}: expected float32 {list(want)}, got {vectors.dtype} {list(vectors.shape)}")
