"""SGD over some blocks of flat buffers as operators of torch, for the compiled core and for the Triton kernels.

`greedynas::bank_sgd_control` measures gradients, `greedynas::bank_sgd` moves parameters in place; the arithmetic is
that of `supernet.sgd`. Blocks are int64 [B, 3] (start, decay_end, end of each, in floats) beside the buffers, with
`kernels.sgd.block_list`'s tiles on a GPU; on a CPU nothing looks at the tiles. What lies outside is not touched.
`supernet.optimizer.BankSGD` calls the core without this detour on a CPU, where a step has microseconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError

from .library import define, fake, implement
from .rows import threads
from .triton_kernels import load

# float32 [1] each: what gradients are to be multiplied by, 1 if one of them is not finite, their norm unscaled.
define(
    "bank_sgd_control(Tensor grad, Tensor table, Tensor tiles, Tensor? inverse_loss_scale, float? clip_norm)"
    " -> (Tensor, Tensor, Tensor)"
)
define(
    "bank_sgd(Tensor(a!) data, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor(d!)? ema, Tensor table, "
    "Tensor tiles, float lr, float momentum, float weight_decay, bool nesterov, float ema_decay, Tensor? scale, "
    "Tensor? skip) -> ()"
)
control_op = torch.ops.greedynas.bank_sgd_control.default
update_op = torch.ops.greedynas.bank_sgd.default


def clipped(norm: float, inverse_loss_scale: float, clip_norm: float | None) -> float:
    """What gradients of this norm are to be multiplied by; clipping as `torch.nn.utils.clip_grad_norm_` does it."""
    if clip_norm is None:
        return inverse_loss_scale
    return inverse_loss_scale * min(clip_norm / (norm * inverse_loss_scale + 1e-6), 1.0)


def _control_cpu(
    grad: Tensor, table: Tensor, tiles: Tensor, inverse_loss_scale: Tensor | None, clip_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    _check("bank_sgd_control", table, grad=grad)
    squares = _core.sum_of_squares(table.data_ptr(), len(table), grad.data_ptr(), threads())
    norm, inverse = math.sqrt(squares), 1.0 if inverse_loss_scale is None else inverse_loss_scale.item()
    found = (clipped(norm, inverse, clip_norm), float(not math.isfinite(squares)), norm * inverse)
    scale, skip, measured = (torch.tensor([value], dtype=torch.float32) for value in found)
    return scale, skip, measured


def _update_cpu(
    data: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    ema: Tensor | None,
    table: Tensor,
    tiles: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    ema_decay: float,
    scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    _check("bank_sgd", table, data=data, grad=grad, momentum_buffer=momentum_buffer, ema=ema)
    if skip is not None and skip.item():
        for start, _, end in table.tolist():
            grad[start:end].zero_()
        return
    _core.sgd_update(
        table.data_ptr(),
        len(table),
        data.data_ptr(),
        grad.data_ptr(),
        0 if momentum_buffer is None else momentum_buffer.data_ptr(),
        0 if ema is None else ema.data_ptr(),
        lr,
        momentum,
        weight_decay,
        ema_decay,
        1.0 if scale is None else scale.item(),
        nesterov,
        True,
        threads(),
    )


def _control_cuda(
    grad: Tensor, table: Tensor, tiles: Tensor, inverse_loss_scale: Tensor | None, clip_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    sgd = load("sgd")
    blocks = sgd.BlockList(table, tiles)
    found = sgd.control(grad, blocks, inverse_loss_scale=inverse_loss_scale, clip_norm=clip_norm)
    return found.scale, found.skip, found.norm


def _update_cuda(
    data: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    ema: Tensor | None,
    table: Tensor,
    tiles: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    ema_decay: float,
    scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    sgd = load("sgd")
    sgd.update(
        data,
        grad,
        momentum_buffer,
        ema,
        sgd.BlockList(table, tiles),
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        ema_decay=ema_decay,
        scale=scale,
        skip=skip,
    )


implement("bank_sgd_control", _control_cpu)
implement("bank_sgd", _update_cpu)
implement("bank_sgd_control", _control_cuda, "CUDA")
implement("bank_sgd", _update_cuda, "CUDA")


@fake("bank_sgd_control")
def _control_fake(
    grad: Tensor, table: Tensor, tiles: Tensor, inverse_loss_scale: Tensor | None, clip_norm: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return grad.new_empty(1), grad.new_empty(1), grad.new_empty(1)


@fake("bank_sgd")
def _update_fake(*arguments: object) -> None:
    """It has no results."""


def _check(name: str, table: Tensor, **buffers: Tensor | None) -> None:
    """Addresses go to the core, which believes them."""
    sizes = {tensor.shape for tensor in buffers.values() if tensor is not None}
    wrong = [
        f"{key} {tensor.dtype} {list(tensor.shape)}"
        for key, tensor in buffers.items()
        if tensor is not None and (tensor.dtype is not torch.float32 or tensor.ndim != 1 or not tensor.is_contiguous())
    ]
    if wrong or len(sizes) != 1:
        raise InputError(f"{name}: expected contiguous float32 tensors of one size [n], got {wrong or sorted(sizes)}")
    if table.dtype is not torch.int64 or table.ndim != 2 or table.shape[1] != 3 or not table.is_contiguous():
        raise InputError(f"{name}: table: expected contiguous int64 [B, 3], got {table.dtype} {list(table.shape)}")
    size = next(iter(sizes))[0]
    bounds = torch.cat([table.new_zeros(len(table), 1), table, table.new_full((len(table), 1), size)], dim=1)
    if (bounds.diff(dim=1) < 0).any():
        raise InputError(f"{name}: table: expected 0 <= start <= decay_end <= end <= {size}, got {table.tolist()}")
