"""A step of SGD over some blocks of flat buffers, one `update` a kind of device; `optimizer.BankSGD` is what uses it.

On the CPU it is the compiled core's (csrc/optim/sgd.h), elsewhere torch's, or on request Triton's (kernels/sgd.py). All
compute

    g = gradient * scale + weight_decay * parameter     (weight decay on `[start, decay_end)` of a block alone)
    momentum = rule.momentum * momentum + g
    parameter -= lr * (momentum, or g + rule.momentum * momentum for Nesterov's form)
    ema = ema_decay * ema + (1 - ema_decay) * parameter

and leave zeros where the gradients were. What lies outside the blocks is neither read nor written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.ops.bank_sgd import clipped, control_op, update_op
from greedynas_fast.ops.rows import threads
from greedynas_fast.ops.triton_kernels import available, load

Blocks: TypeAlias = NDArray[np.int64]
"""[B, 3], contiguous: start, decay_end, end of each block in floats; some may be empty, none overlap."""


class Buffers(NamedTuple):
    """Flat float32 tensors [n] on one device, laid out alike; None where there is no momentum or no average."""

    data: Tensor
    grad: Tensor
    momentum: Tensor | None
    ema: Tensor | None


class Rule(NamedTuple):
    """What stays the same over the steps; see `BankSGD`."""

    momentum: float
    weight_decay: float
    nesterov: bool
    clip_norm: float | None
    ema_decay: float | None


Update: TypeAlias = Callable[[Buffers, Blocks, Rule, float, float | None], bool]
"""`update(buffers, blocks, rule, lr, loss_scale)`: one step, whether it was made. If not, because gradients that are to
be clipped or unscaled are not all finite, only the gradients have been set to zero."""


def update_for(device: torch.device, triton: bool = False) -> Update:
    """The function that steps on this device.

    Raises:
        InputError: Triton is asked for, and it is not there or the device is no GPU.
    """
    if triton:
        if device.type != "cuda" or not available():
            raise InputError(f"triton (train.triton_sgd): expected a CUDA device and Triton, got {device}")
        return update_triton
    return update_core if device.type == "cpu" else update_torch


def update_core(buffers: Buffers, blocks: Blocks, rule: Rule, lr: float, loss_scale: float | None) -> bool:
    """One pass of the compiled core, and one before it over the gradients where they are clipped or unscaled."""
    place, count = blocks.ctypes.data, len(blocks)
    grad, num_threads = buffers.grad.data_ptr(), threads()
    scale = 1.0
    if _measures(rule, loss_scale):
        squares = _core.sum_of_squares(place, count, grad, num_threads)
        if not math.isfinite(squares):
            for view in _views(buffers.grad, blocks[:, 0::2]):
                view.zero_()
            return False
        scale = _scale(math.sqrt(squares), rule, loss_scale)
    _core.sgd_update(
        place,
        count,
        buffers.data.data_ptr(),
        grad,
        0 if buffers.momentum is None else buffers.momentum.data_ptr(),
        0 if buffers.ema is None else buffers.ema.data_ptr(),
        lr,
        rule.momentum,
        rule.weight_decay,
        rule.ema_decay or 0.0,
        scale,
        rule.nesterov,
        True,
        num_threads,
    )
    return True


@torch.no_grad()
def update_torch(buffers: Buffers, blocks: Blocks, rule: Rule, lr: float, loss_scale: float | None) -> bool:
    """The same by torch's operators for lists of tensors, on any device. It waits for the device if it measures."""
    grads = _views(buffers.grad, blocks[:, 0::2])
    if _measures(rule, loss_scale):
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, torch.float64))).item()
        if not math.isfinite(norm):
            torch._foreach_zero_(grads)
            return False
        torch._foreach_mul_(grads, _scale(norm, rule, loss_scale))
    if rule.weight_decay:
        _fused(buffers, blocks[:, :2], rule, lr, rule.weight_decay)
        _fused(buffers, blocks[:, 1:], rule, lr, 0.0)
    else:
        _fused(buffers, blocks[:, 0::2], rule, lr, 0.0)
    if buffers.ema is not None and rule.ema_decay is not None:
        averages = _views(buffers.ema, blocks[:, 0::2])
        torch._foreach_mul_(averages, rule.ema_decay)
        torch._foreach_add_(averages, _views(buffers.data, blocks[:, 0::2]), alpha=1 - rule.ema_decay)
    torch._foreach_zero_(grads)
    return True


def update_triton(buffers: Buffers, blocks: Blocks, rule: Rule, lr: float, loss_scale: float | None) -> bool:
    """One launch over the blocks. It waits for the device if it measures, as it says whether the step was made."""
    active = load("sgd").block_list(blocks, buffers.data.device)
    scale = skip = None
    if _measures(rule, loss_scale):
        inverse = None if loss_scale is None else buffers.data.new_full((1,), 1.0 / loss_scale)
        scale, skip, _ = control_op(buffers.grad, *active, inverse, rule.clip_norm)
    ema_decay = rule.ema_decay or 0.0
    update_op(*buffers, *active, lr, rule.momentum, rule.weight_decay, rule.nesterov, ema_decay, scale=scale, skip=skip)
    return skip is None or not bool(skip.item())


def _measures(rule: Rule, loss_scale: float | None) -> bool:
    """Whether a step needs the norm of its gradients first."""
    return rule.clip_norm is not None or loss_scale is not None


def _scale(norm: float, rule: Rule, loss_scale: float | None) -> float:
    """What gradients of this norm are to be multiplied by."""
    return clipped(norm, 1.0 if loss_scale is None else 1.0 / loss_scale, rule.clip_norm)


def _views(buffer: Tensor, bounds: Blocks) -> list[Tensor]:
    """The slices of a buffer between bounds [B, 2]; empty ones are left out."""
    return [buffer[start:end] for start, end in bounds.tolist() if end > start]


def _fused(buffers: Buffers, bounds: Blocks, rule: Rule, lr: float, weight_decay: float) -> None:
    """What `torch.optim.SGD(fused=True)` calls, where all values have the same weight decay.

    A buffer of zeros gives the same first step as none, so that blocks used for the first time need no case of their
    own.
    """
    data = _views(buffers.data, bounds)
    if not data:
        return
    torch._fused_sgd_(
        data,
        _views(buffers.grad, bounds),
        [] if buffers.momentum is None else _views(buffers.momentum, bounds),
        weight_decay=weight_decay,
        momentum=rule.momentum,
        lr=lr,
        dampening=0.0,
        nesterov=rule.nesterov,
        maximize=False,
        is_first_step=False,
    )
