"""SGD over the active blocks of a parameter bank: momentum, weight decay, moving average and zeroing in one pass.

A block is `[start, end)` of flat float32 tensors; weight decay is for `[start, decay_end)`. The launch grid lists the
tiles of the active blocks alone, so inactive ones cost nothing and keep their bits. Loss scale, clipping and the
decision to skip a step stay on the device: nothing here waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from greedynas_fast.errors import InputError

ALIGNMENT = 16
"""Floats: blocks start and end on multiples of this, so that loads of four floats stay aligned."""
TILE = 2048
_CHUNK = 1024


class BlockList(NamedTuple):
    """The active blocks on the device.

    Attributes:
        table: int64 [B, 3]: start, decay_end, end.
        tiles: int32 [T, 2]: block, index of the tile within it.
    """

    table: Tensor
    tiles: Tensor


class Control(NamedTuple):
    """What a step is told by its gradients, each float32 [1] on the device.

    Attributes:
        scale: what the gradients are to be multiplied by: inverse loss scale times the factor of clipping.
        skip: 1 if a gradient is infinite or no number, else 0.
        norm: of all gradients together, without the loss scale and before clipping.
    """

    scale: Tensor
    skip: Tensor
    norm: Tensor


def block_list(blocks: Sequence[tuple[int, int, int]], device: torch.device) -> BlockList:
    """The tables of a launch, in one copy to the device.

    Args:
        blocks: (start, decay_end, end) of each active block, in floats; empty ones are left out.
        device: of the parameters.

    Raises:
        InputError: bounds that are out of order or not aligned.
    """
    table = np.asarray(blocks, dtype=np.int64).reshape(-1, 3)
    start, decay_end, end = table.T
    if table.size and (
        (start % ALIGNMENT).any() or (end % ALIGNMENT).any() or not ((start <= decay_end) & (decay_end <= end)).all()
    ):
        raise InputError(
            f"blocks: expected start <= decay_end <= end, start and end multiples of {ALIGNMENT}, got {table.tolist()}"
        )
    counts = -(-(end - start) // TILE)
    first = np.cumsum(counts) - counts
    if not counts.any():
        none = torch.empty(0, dtype=torch.int64, device=device)
        return BlockList(none.view(0, 3), none.int().view(0, 2))
    tiles = np.empty((int(counts.sum()), 2), dtype=np.int32)
    tiles[:, 0] = np.repeat(np.arange(len(table)), counts)
    tiles[:, 1] = np.arange(len(tiles)) - np.repeat(first, counts)
    packed = torch.from_numpy(np.concatenate([table.ravel(), tiles.view(np.int64).ravel()]))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    bounds = packed[: table.size].view(-1, 3)
    return BlockList(bounds, packed[table.size :].view(torch.int32).view(-1, 2))


def control(
    grad: Tensor, blocks: BlockList, *, inverse_loss_scale: Tensor | None = None, clip_norm: float | None = None
) -> Control:
    """Measure the gradients of the active blocks. The sums have a fixed order: equal gradients give equal bits.

    Args:
        grad: float32 [n], contiguous, on the device.
        blocks: the active ones.
        inverse_loss_scale: float32 [1] on the device, by which gradients are to be multiplied; None for 1.
        clip_norm: upper bound of the norm, as `torch.nn.utils.clip_grad_norm_`; None for no bound.

    Returns:
        What `update` takes as `scale` and `skip`, and the norm.

    Raises:
        InputError: tensors that do not fit.
    """
    _check_flat(grad=grad)
    _check_scalar("inverse_loss_scale", inverse_loss_scale, grad.device)
    tiles = len(blocks.tiles)
    partial = torch.empty((2, tiles), dtype=torch.float64, device=grad.device)
    result = torch.empty((3, 1), dtype=torch.float32, device=grad.device)
    if tiles:
        squares_kernel[(tiles,)](grad, blocks.table, blocks.tiles, partial, tiles, TILE=TILE, num_warps=4)
    control_kernel[(1,)](
        partial,
        tiles,
        result if inverse_loss_scale is None else inverse_loss_scale,
        0.0 if clip_norm is None else clip_norm,
        result,
        HAS_LOSS_SCALE=inverse_loss_scale is not None,
        CLIPS=clip_norm is not None,
        CHUNK=_CHUNK,
        num_warps=4,
    )
    return Control(*result.unbind())


def update(
    data: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    ema: Tensor | None,
    blocks: BlockList,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    ema_decay: float = 0.0,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    zero_grad: bool = True,
) -> None:
    """Move the active blocks in place, in the arithmetic of `torch.optim.SGD` (dampening 0).

    g = scale * grad + weight_decay * data; momentum_buffer = momentum * momentum_buffer + g; data -= lr * (with
    Nesterov: g + momentum * momentum_buffer, else momentum_buffer); ema = d * ema + (1 - d) * data. A buffer of zeros
    gives the same first step as none.

    Args:
        data: parameters, float32 [n], contiguous.
        grad: gradients, float32 [n], contiguous.
        momentum_buffer: float32 [n]; None if `momentum` is 0.
        ema: moving average of the parameters, float32 [n]; or None.
        blocks: the active ones; they must not overlap.
        lr: learning rate.
        momentum: 0 or more.
        weight_decay: for `[start, decay_end)` of each block.
        nesterov: Nesterov's form of momentum.
        ema_decay: d.
        scale: float32 [1] on the device, by which gradients are multiplied; None for 1.
        skip: float32 [1] on the device; where it is not 0, only the zeroing of the gradients happens.
        zero_grad: leave zeros in the active blocks of `grad`; else they stay as they are.

    Raises:
        InputError: tensors that do not fit, or a momentum without its buffer.
    """
    _check_flat(data=data, grad=grad, momentum_buffer=momentum_buffer, ema=ema)
    _check_scalar("scale", scale, data.device)
    _check_scalar("skip", skip, data.device)
    if momentum and momentum_buffer is None:
        raise InputError("momentum_buffer: expected a tensor for a momentum above 0, got None")
    if not len(blocks.tiles):
        return
    sgd_kernel[(len(blocks.tiles),)](
        data,
        grad,
        momentum_buffer if momentum else data,
        data if ema is None else ema,
        blocks.table,
        blocks.tiles,
        data if scale is None else scale,
        data if skip is None else skip,
        lr,
        momentum,
        weight_decay,
        ema_decay,
        1.0 - ema_decay,
        HAS_MOMENTUM=bool(momentum),
        NESTEROV=nesterov,
        HAS_EMA=ema is not None,
        HAS_SCALE=scale is not None,
        HAS_SKIP=skip is not None,
        ZERO_GRAD=zero_grad,
        TILE=TILE,
        num_warps=4,
    )


@triton.jit
def _tile(table, tiles, TILE: tl.constexpr):
    """Offsets of this program's tile, its mask, and where weight decay ends."""
    program = tl.program_id(0).to(tl.int64)
    block = tl.load(tiles + program * 2).to(tl.int64)
    index = tl.load(tiles + program * 2 + 1).to(tl.int64)
    start = tl.multiple_of(tl.load(table + block * 3), 16)
    decay_end = tl.load(table + block * 3 + 1)
    end = tl.multiple_of(tl.load(table + block * 3 + 2), 16)
    offsets = start + index * TILE + tl.arange(0, TILE)
    return offsets, offsets < end, decay_end


@triton.jit
def sgd_kernel(
    data,
    grad,
    momentum_buffer,
    ema,
    table,
    tiles,
    scale,
    skip,
    lr,
    momentum,
    weight_decay,
    ema_decay,
    ema_share,
    HAS_MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    HAS_EMA: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    ZERO_GRAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One tile of one active block."""
    offsets, mask, decay_end = _tile(table, tiles, TILE)
    skipped = 0.0
    if HAS_SKIP:
        skipped = tl.load(skip)
    if skipped == 0.0:
        p = tl.load(data + offsets, mask, 0.0)
        g = tl.load(grad + offsets, mask, 0.0)
        if HAS_SCALE:
            g *= tl.load(scale)
        g += tl.where(offsets < decay_end, weight_decay, 0.0) * p
        if HAS_MOMENTUM:
            m = momentum * tl.load(momentum_buffer + offsets, mask, 0.0) + g
            tl.store(momentum_buffer + offsets, m, mask)
            if NESTEROV:
                g += momentum * m
            else:
                g = m
        p -= lr * g
        tl.store(data + offsets, p, mask)
        if HAS_EMA:
            average = tl.load(ema + offsets, mask, 0.0)
            tl.store(ema + offsets, ema_decay * average + ema_share * p, mask)
    if ZERO_GRAD:
        tl.store(grad + offsets, tl.zeros([TILE], tl.float32), mask)


@triton.jit(do_not_specialize=["num_tiles"])
def squares_kernel(grad, table, tiles, partial, num_tiles, TILE: tl.constexpr):
    """Of each tile, partial [2, T]: the sum of squares, and 1 if a value is infinite or no number."""
    offsets, mask, _ = _tile(table, tiles, TILE)
    g = tl.load(grad + offsets, mask, 0.0)
    program = tl.program_id(0).to(tl.int64)
    wide = g.to(tl.float64)  # the square of a finite float32 is finite here
    tl.store(partial + program, tl.sum(wide * wide, 0))
    # A comparison with no number is false, so this finds both.
    tl.store(partial + num_tiles + program, tl.max(tl.where(tl.abs(g) < float("inf"), 0.0, 1.0), 0))


@triton.jit(do_not_specialize=["num_tiles"])
def control_kernel(
    partial,
    num_tiles,
    inverse_loss_scale,
    clip_norm,
    result,
    HAS_LOSS_SCALE: tl.constexpr,
    CLIPS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One program; result [3]: scale, skip, norm."""
    squares = tl.zeros([CHUNK], tl.float64)
    bad = tl.zeros([CHUNK], tl.float64)
    for first in range(0, num_tiles, CHUNK):
        offsets = first + tl.arange(0, CHUNK).to(tl.int64)
        mask = offsets < num_tiles
        squares += tl.load(partial + offsets, mask, 0.0)
        bad = tl.maximum(bad, tl.load(partial + num_tiles + offsets, mask, 0.0))
    scale = 1.0
    if HAS_LOSS_SCALE:
        scale = tl.load(inverse_loss_scale)
    norm = tl.sqrt(tl.sum(squares, 0)).to(tl.float32) * scale
    if CLIPS:
        scale *= tl.minimum(clip_norm / (norm + 1e-6), 1.0)
    tl.store(result, scale)
    tl.store(result + 1, tl.max(bad, 0).to(tl.float32))
    tl.store(result + 2, norm)


def _check_flat(**tensors: Tensor | None) -> None:
    first = next(iter(tensors.values()))
    assert first is not None
    for name, tensor in tensors.items():
        if tensor is not None and (
            tensor.dtype is not torch.float32
            or tensor.shape != (first.numel(),)
            or not tensor.is_contiguous()
            or tensor.device != first.device
        ):
            raise InputError(
                f"{name}: expected contiguous float32 [{first.numel()}] on {first.device}, "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def _check_scalar(name: str, value: Tensor | None, device: torch.device) -> None:
    if value is not None and (value.dtype is not torch.float32 or value.numel() != 1 or value.device != device):
        raise InputError(f"{name}: expected float32 [1] on {device}, got {value.dtype} {list(value.shape)}")
