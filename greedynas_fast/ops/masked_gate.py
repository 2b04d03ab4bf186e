"""Op-masked squeeze-and-excitation: batch norm and activation with pooling, and the gates of a batch of several paths.

`masked_squeeze` normalises and pools; `masked_gates` makes the gates from what is pooled. What they are applied to,
act(x * scale + shift), is computed where the projection loads its input, and not stored. Batches, banks and back ends
are those of `masked_norm_act`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from greedynas_fast.errors import InputError
from greedynas_fast.reference import masked_norm_act as reference
from greedynas_fast.reference.bn_act import ACTIVATIONS
from greedynas_fast.reference.squeeze_excite import GATES

from .inverted_residual import Gate
from .masked_norm_act import anchored, check_activation, check_flat, check_offsets, gather, layout_parts, shown, views
from .ragged import Ragged
from .triton_kernels import backend

__all__ = ["masked_gates", "masked_squeeze"]

_OPS = torch.ops.greedynas


def masked_squeeze(
    x: Tensor,
    layout: Ragged,
    bank: Tensor,
    weight_offsets: Sequence[int],
    bias_offsets: Sequence[int],
    *,
    pools: Sequence[bool],
    activation: str,
    eps: float = 1e-5,
    bank_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of each group as scale and shift, and the means over the pixels of act(x * scale + shift).

    Use the first result in place of x: gradients that come back through it, the moments and the pooled values are then
    joined in one pass over x.

    Args:
        x: flat, of the layout.
        layout: of x.
        bank: as `masked_scale_shift` takes it, with its offsets, eps and bank_grad.
        weight_offsets: where the weight of each group begins in the bank.
        bias_offsets: likewise for the bias.
        pools: for each group whether its values are pooled.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        eps: added to the variance.
        bank_grad: to which the backward pass adds the gradients of weights and biases, in place.

    Returns:
        x; scale and shift [2, channels of all groups]; pooled values, float32, flat, by the layout's `gate_offsets`;
        those of groups that are not pooled mean nothing. float64 for float64.

    Raises:
        InputError: shapes, names or offsets that do not fit.
    """
    name = "masked_squeeze"
    check_flat(f"{name}: x", x, layout)
    check_activation(name, activation)
    check_offsets(name, layout, bank, bank_grad, weight_offsets, bias_offsets)
    if len(pools) != layout.groups:
        raise InputError(f"{name}: pools: expected one for each of {layout.groups} groups, got {len(pools)}")
    where = (shown(layout, weight_offsets), shown(layout, bias_offsets))
    if backend(x) == "reference":
        moments = reference.masked_moments(views(x, layout))
        scale_shift = reference.masked_scale_shift(moments, gather(bank, bank_grad, layout, *where), eps)
        return x, scale_shift, reference.masked_pool(views(x, layout), scale_shift, pools, activation)
    used = [bool(pool) for pool in pools]
    x, scale_shift, pooled = _Squeeze.apply(
        x, anchored(bank, bank_grad, x), bank_grad, layout, where, used, activation, eps
    )
    return x, scale_shift, pooled


def masked_gates(pooled: Tensor, layout: Ragged, gates: Sequence[Gate | None]) -> Tensor:
    """gate(expand(act(reduce(pooled)))) of each group: what the values of each sample and channel are multiplied by.

    These are two products of [samples, channels] with a weight, far too small to be worth a kernel: torch's, on a GPU
    one pair a live operation, over the samples of all its groups; on a CPU, where the bits of a row depend on how many
    there are and calls are cheap, one pair a group. Their weights are the parameters themselves, so that autograd adds
    gradients up where the parameters have them: in the bank.

    Args:
        pooled: of `masked_squeeze`.
        layout: what is gated.
        gates: the squeeze-and-excitation of each group; None: its gates are 1.

    Returns:
        Flat, by the layout's `gate_offsets`, of the dtype of `pooled`.

    Raises:
        InputError: another size of `pooled`, number of gates or shape of a weight.
    """
    if pooled.shape != (layout.gate_offsets[-1],) or len(gates) != layout.groups:
        raise InputError(
            f"masked_gates: expected [{layout.gate_offsets[-1]}] and {layout.groups} gates, "
            f"got {list(pooled.shape)} and {len(gates)}"
        )
    shared: dict[int, list[int]] = {}
    for group in layout.live:
        gate = gates[group]
        if gate is not None:
            _check_gate(gate, layout.widths[group])
            shared.setdefault(id(gate.reduce_weight) if pooled.is_cuda else group, []).append(group)
    results: dict[int, Tensor] = {}
    for groups in shared.values():
        rows = torch.cat([layout.gates(pooled, group) for group in groups])
        samples = [layout.samples[group] for group in groups]
        results |= zip(groups, torch.split(_gate(rows, gates[groups[0]]), samples), strict=True)
    ones = [pooled.new_ones(()).expand(n * c) for n, c in zip(layout.samples, layout.widths, strict=True)]
    return torch.cat([results[g].flatten() if g in results else ones[g] for g in range(layout.groups)])


def _gate(rows: Tensor, gate: Gate | None) -> Tensor:
    """Gates [N, C] of pooled values [N, C], in their dtype."""
    assert gate is not None
    reduce_weight, reduce_bias, expand_weight, expand_bias = (value.to(rows.dtype) for value in gate[:4])
    with torch.autocast(rows.device.type, enabled=False):
        hidden = torch.nn.functional.linear(rows, reduce_weight.flatten(1), reduce_bias)
        hidden = ACTIVATIONS[gate.activation](hidden)
        return GATES[gate.gate](torch.nn.functional.linear(hidden, expand_weight.flatten(1), expand_bias))


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bank: Tensor,
        bank_grad: Tensor | None,
        layout: Ragged,
        offsets: tuple[list[int], list[int]],
        pools: list[bool],
        activation: str,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = layout_parts(layout)
        moments = _OPS.masked_moments(x, *parts)
        scale_shift = _OPS.masked_scale_shift(moments, bank, *offsets, *parts, eps)
        pooled = _OPS.masked_pool(x, scale_shift, *parts, pools, activation)
        ctx.save_for_backward(x, bank, moments, scale_shift)
        ctx.norm, ctx.pool, ctx.bank_grad = (*offsets, *parts, eps), (*parts, pools, activation), bank_grad
        ctx.set_materialize_grads(False)
        return x.view_as(x), scale_shift, pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, grad_scale_shift, grad_pooled = grads
        x, bank, moments, scale_shift = ctx.saved_tensors
        if grad_pooled is None and grad_scale_shift is None:
            return (grad,) + (None,) * 7
        of_norm = torch.zeros_like(scale_shift) if grad_scale_shift is None else grad_scale_shift.clone()
        if grad_pooled is not None:
            _OPS.masked_pool_backward_(of_norm, grad_pooled, x, scale_shift, *ctx.pool)
        into = torch.zeros_like(bank) if ctx.bank_grad is None else ctx.bank_grad
        grad_moments = _OPS.masked_scale_shift_backward_(of_norm, moments, bank, into, *ctx.norm)
        grad_x = _OPS.masked_join_gradients(grad, grad_moments, grad_pooled, x, moments, scale_shift, *ctx.pool)
        return (grad_x, into if ctx.bank_grad is None else None) + (None,) * 6


def _check_gate(gate: Gate, channels: int) -> None:
    reduced = gate.reduce_weight.shape[0]
    for name, value, shape in (
        ("reduce_weight", gate.reduce_weight, (reduced, channels)),
        ("expand_weight", gate.expand_weight, (channels, reduced)),
        ("reduce_bias", gate.reduce_bias, (reduced,)),
        ("expand_bias", gate.expand_bias, (channels,)),
    ):
        if tuple(value.shape) not in (shape, (*shape, 1, 1)):
            raise InputError(f"masked_gates: {name}: expected {list(shape)}, got {list(value.shape)}")
    for name, known, word in (("activation", ACTIVATIONS, gate.activation), ("gate", GATES, gate.gate)):
        if word not in known:
            raise InputError(f"masked_gates: {name}: expected one of {', '.join(known)}, got {word!r}")
