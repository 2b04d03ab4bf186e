"""Launches of the kernels of `kernels/pointwise.py`; shapes and types were checked before.

Outputs and workspaces come from torch; nothing waits for the device, which the caller has made current. Every sum over
rows has an order that depends on the shapes alone, so that results are the same bits each time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import triton_kernels
from .masked_pointwise_layer import Layer, OutputGradient, Prologue
from .masked_pointwise_tiles import Kernel, Tile, choose
from .ragged_reduction import FAN, join

# Elements that one program of the last step of the weight gradient adds up.
_ELEMENTS = 256


def _tile(kernel: Kernel, x: Tensor, layer: Layer, allow_tf32: bool) -> Tile:
    rows = max((layer.x.rows[g] for g in layer.live), default=0)
    widths = (max(layer.x.widths, default=0), max(layer.y.widths, default=0))
    return choose(kernel, x.dtype, allow_tf32, rows, *widths, card=_card(x.get_device()) if x.is_cuda else None)


@lru_cache
def _card(index: int) -> str:
    return torch.cuda.get_device_name(index)


def forward(
    x: Tensor,
    bank: Tensor,
    layer: Layer,
    prologue: Prologue,
    want_stats: bool,
    allow_tf32: bool,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """y, and its moments [2, channels] or [2, 0]."""
    tile = tile or _tile("forward", x, layer, allow_tf32)
    y = layer.y.empty(x.dtype, x.device)
    channels = layer.y.channel_offsets[-1] if want_stats else 0
    moments = _vector(layer, (2, channels), x)
    if not layer.live:
        return y, moments
    gated = prologue.gate is not None
    partials = _workspace(layer.partials(tile, gated) if want_stats else 0, 2, max(layer.y.widths), x)
    tiles = layer.y.tiles(tile.rows, tile.channels_out, x.device, per_sample=gated)
    align_in, align_out, align_bank = layer.alignment
    triton_kernels.load("pointwise").forward_kernel[(len(tiles),)](
        x, bank, *_vectors(prologue, x), y, partials,
        tiles, layer.x.table(x.device), layer.y.table(x.device), layer.table(tile, gated, x.device),
        layer.x.height * layer.x.width, partials.shape[2],
        ALIGN_IN=align_in, ALIGN_OUT=align_out, ALIGN_BANK=align_bank, **prologue.constants(), MOMENTS=want_stats,
        **_shape(tile, x, allow_tf32),
    )  # fmt: skip
    if want_stats:
        join(partials, layer.joins(layer.y, tile, gated, x.device, FAN), moments, channels, "moments", FAN)
    return y, moments


def data_gradient(
    of_y: OutputGradient,
    x: Tensor,
    bank: Tensor,
    layer: Layer,
    prologue: Prologue,
    sums: bool,
    allow_tf32: bool,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale and shift [2, channels] and of the gate; with nothing in the last two if not wanted."""
    tile = tile or _tile("data", x, layer, allow_tf32)
    grad_x = layer.x.empty(x.dtype, x.device)
    normed, gated = sums and prologue.scale is not None, sums and prologue.gate is not None
    channels = layer.x.channel_offsets[-1] if normed else 0
    grad_norm = _vector(layer, (2, channels), x)
    grad_gate = torch.empty(layer.x.gate_offsets[-1] if gated else 0, dtype=torch.float32, device=x.device)
    if not layer.live:
        return grad_x, grad_norm, grad_gate
    per_sample = prologue.gate is not None
    count = layer.partials(tile, per_sample)
    norm_partials = _workspace(count if normed else 0, 2, max(layer.x.widths), x)
    gate_partials = _workspace(count if gated else 0, 1, max(layer.x.widths), x)
    tiles = layer.x.tiles(tile.rows, tile.channels_in, x.device, per_sample=per_sample)
    align_in, align_out, align_bank = layer.alignment
    triton_kernels.load("pointwise").data_gradient_kernel[(len(tiles),)](
        *of_y.pointers(), bank, x, *_vectors(prologue, x), grad_x, norm_partials, gate_partials,
        tiles, layer.x.table(x.device), layer.y.table(x.device), layer.table(tile, per_sample, x.device),
        layer.x.height * layer.x.width, norm_partials.shape[2], layer.y.channel_offsets[-1],
        ALIGN_IN=align_in, ALIGN_OUT=align_out, ALIGN_BANK=align_bank, **prologue.constants(),
        MOMENTS=of_y.grad_moments is not None, SUMS=sums, **_shape(tile, x, allow_tf32),
    )  # fmt: skip
    if normed:
        join(norm_partials, layer.joins(layer.x, tile, per_sample, x.device, FAN), grad_norm, channels, "sum", FAN)
    if gated:
        join(gate_partials, layer.gate_joins(tile, x.device, FAN), grad_gate, 0, "sum", FAN)
    return grad_x, grad_norm, grad_gate


def add_weight_gradient(
    bank_grad: Tensor,
    of_y: OutputGradient,
    x: Tensor,
    layer: Layer,
    prologue: Prologue,
    allow_tf32: bool,
    tile: Tile | None = None,
) -> None:
    """Add the gradients of the weights to the float32 gradient of the bank, in place."""
    if not layer.live:
        return
    tile = tile or _tile("weight", x, layer, allow_tf32)
    kernels = triton_kernels.load("pointwise")
    jobs, sums = layer.weight_jobs(tile, x.device)
    size = tile.channels_out * tile.channels_in
    runs = torch.empty(len(jobs) * size, dtype=torch.float32, device=x.device)
    align_in, align_out, _ = layer.alignment
    kernels.weight_gradient_kernel[(len(jobs),)](
        *of_y.pointers(), x, *_vectors(prologue, x), runs, jobs, layer.x.table(x.device), layer.y.table(x.device),
        layer.x.height * layer.x.width, layer.y.channel_offsets[-1],
        ALIGN_IN=align_in, ALIGN_OUT=align_out, **prologue.constants(), MOMENTS=of_y.grad_moments is not None,
        **_shape(tile, x, allow_tf32),
    )  # fmt: skip
    kernels.add_weight_gradient_kernel[(len(sums), -(-size // _ELEMENTS))](
        runs, bank_grad, sums, BLOCK_O=tile.channels_out, BLOCK_I=tile.channels_in, BLOCK=_ELEMENTS
    )


def _vectors(prologue: Prologue, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, shift and gate; x stands in for what is not read."""
    scale, shift, _, gate = prologue
    return (x if scale is None else scale, x if shift is None else shift, x if gate is None else gate)


def _vector(layer: Layer, size: tuple[int, ...], x: Tensor) -> Tensor:
    """float32 for results of the live groups; zeros where a group has channels but no samples, hence no result."""
    covered = all(layer.x.samples[g] or not layer.x.widths[g] for g in range(layer.x.groups))
    make = torch.empty if covered else torch.zeros
    return make(size, dtype=torch.float32, device=x.device)


def _workspace(count: int, parts: int, width: int, x: Tensor) -> Tensor:
    """float32 [count, parts, width rounded up to whole cache lines of 64 bytes]."""
    return torch.empty(count, parts, -(-width // 16) * 16, dtype=torch.float32, device=x.device)


def _shape(tile: Tile, x: Tensor, allow_tf32: bool) -> dict[str, Any]:
    return {
        "PRECISION": "tf32" if allow_tf32 and x.dtype is torch.float32 else "ieee",
        "BLOCK_R": tile.rows,
        "BLOCK_I": tile.channels_in,
        "BLOCK_O": tile.channels_out,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
