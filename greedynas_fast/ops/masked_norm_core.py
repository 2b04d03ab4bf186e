"""The operators of norm, activation and pooling over ragged groups, on CUDA: launches of the Triton kernels.

`torch.ops.greedynas.masked_*` take a layout as its four parts, see `ragged.Ragged`. What users call is in
`masked_norm_act` and `masked_gate`. Vectors [2, channels] hold a value a channel of each group; those of groups without
samples are undefined.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .bn_core import ACTIVATIONS
from .library import define, fake, implement
from .ragged import ALIGNMENT, Ragged, ragged
from .triton_kernels import load

_LAYOUT = "int[] samples, int height, int width, int[] widths"
_BANK = "int[] weight_offsets, int[] bias_offsets"
define(f"masked_moments(Tensor x, {_LAYOUT}) -> Tensor")
define(f"masked_scale_shift(Tensor moments, Tensor bank, {_BANK}, {_LAYOUT}, float eps) -> Tensor")
# Gives the gradient of the moments; those of weights and biases are added to bank_grad.
define(
    f"masked_scale_shift_backward_(Tensor grad, Tensor moments, Tensor bank, Tensor(a!) bank_grad, {_BANK}, {_LAYOUT}, "
    "float eps) -> Tensor"
)
define(
    f"masked_norm_act(Tensor x, Tensor scale_shift, Tensor? residual, {_LAYOUT}, int[] widths_out, str activation) "
    "-> Tensor"
)
# Gives the gradients of x, scale and shift, and residual; the latter is empty if it is that of the result or unwanted.
define(
    f"masked_norm_act_backward(Tensor grad, Tensor x, Tensor scale_shift, Tensor? residual, {_LAYOUT}, "
    "int[] widths_out, str activation, bool want_residual) -> (Tensor, Tensor, Tensor)"
)
define(f"masked_pool(Tensor x, Tensor scale_shift, {_LAYOUT}, bool[] pools, str activation) -> Tensor")
# Adds to grad_scale_shift what comes through the pooled values.
define(
    f"masked_pool_backward_(Tensor(a!) grad_scale_shift, Tensor grad_pooled, Tensor x, Tensor scale_shift, {_LAYOUT}, "
    "bool[] pools, str activation) -> ()"
)
define(
    "masked_join_gradients(Tensor? grad, Tensor grad_moments, Tensor? grad_pooled, Tensor x, Tensor moments, "
    f"Tensor? scale_shift, {_LAYOUT}, bool[] pools, str activation) -> Tensor"
)

# Rows of a program that sums nothing up: few, so that small images fill the device.
_APPLY_ROWS = 128
# Rows of a step of a loop; fewer where three tensors are read, so that no register spills.
_BLOCK_R = 32
_BACKWARD_BLOCK_R = 16
_BLOCK_T = 16
_WHOLE_GROUP = 1 << 40


def _tile_rows(layout: Ragged) -> int:
    """Rows that a program sums up: by the image size alone, so that a group's sums do not depend on the others."""
    pixels = layout.height * layout.width
    return 128 if pixels <= 14 * 14 else 512 if pixels <= 56 * 56 else 2048


def _block_channels(layout: Ragged) -> int:
    """Channels of a tile: 64 are 128 bytes of bf16; fewer where no group has as many."""
    widest = max((layout.widths[g] for g in layout.live), default=1)
    return 16 if widest <= 16 else 32 if widest <= 32 else 64


def _alignment(layout: Ragged) -> int:
    """The largest power of two that divides the widths of all live groups: so wide may loads be."""
    found = ALIGNMENT
    while any(layout.widths[g] % found for g in layout.live):
        found //= 2
    return found


def _shape(layout: Ragged, rows: int, block_rows: int = _BLOCK_R) -> dict[str, int]:
    return {
        "ALIGN": _alignment(layout),
        "TILE_ROWS": rows,
        "BLOCK_R": block_rows,
        "BLOCK_C": _block_channels(layout),
    }


def _partials(layout: Ragged, rows: int, device: torch.device) -> Tensor:
    """[2, row tiles of the largest group, channels]."""
    row_tiles = max(layout.row_tiles(rows), default=0)
    return torch.empty((2, row_tiles, layout.channel_offsets[-1]), dtype=torch.float32, device=device)


def _vectors(layout: Ragged, device: torch.device) -> Tensor:
    return torch.empty((2, layout.channel_offsets[-1]), dtype=torch.float32, device=device)


def _selected(layout: Ragged, pools: Sequence[bool]) -> Ragged:
    """The layout with other groups masked: for its tiles alone, offsets are those of the layout."""
    return layout.with_widths([width if used else 0 for width, used in zip(layout.widths, pools, strict=True)])


@lru_cache(maxsize=4096)
def _table(columns: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """int64 [G, columns], copied to the device once."""
    return torch.tensor(columns, dtype=torch.int64).t().contiguous().to(device)


def _finish(kernel: Any, partials: Tensor, result: Tensor, layout: Ragged, which: Ragged, **constants: Any) -> None:
    """The second stage of sums, over the groups that are live in `which`."""
    block = _block_channels(layout)
    tiles = which.tiles(_WHOLE_GROUP, block, partials.device)
    if len(tiles):
        kernel[(len(tiles),)](
            partials,
            result,
            tiles,
            layout.table(partials.device),
            partials.shape[2],
            partials.stride(0),
            TILE_ROWS=_tile_rows(layout),
            BLOCK_T=_BLOCK_T,
            BLOCK_C=block,
            **constants,
        )


def _moments(x: Tensor, *layout_parts: Any) -> Tensor:
    kernels, layout = load("norm_act"), ragged(*layout_parts)
    rows = _tile_rows(layout)
    partials, result = _partials(layout, rows, x.device), _vectors(layout, x.device)
    tiles = layout.tiles(rows, _block_channels(layout), x.device)
    if len(tiles):
        kernels.moments_kernel[(len(tiles),)](
            x, partials, tiles, layout.table(x.device), partials.shape[2], partials.stride(0), **_shape(layout, rows)
        )
        _finish(kernels.finish_moments_kernel, partials, result, layout, layout)
    return result


def _scale_shift(
    moments: Tensor, bank: Tensor, weights: Sequence[int], biases: Sequence[int], *layout_parts_and_eps: Any
) -> Tensor:
    *layout_parts, eps = layout_parts_and_eps
    kernels, layout = load("norm_act"), ragged(*layout_parts)
    device, block = moments.device, _block_channels(layout)
    result = torch.empty_like(moments)
    offsets = _table((tuple(weights), tuple(biases)), device)
    tiles = layout.tiles(_WHOLE_GROUP, block, device)
    if len(tiles):
        kernels.scale_shift_kernel[(len(tiles),)](
            moments, bank, offsets, result, tiles, layout.table(device), moments.shape[1], eps, BLOCK_C=block
        )
    return result


def _scale_shift_backward(
    grad: Tensor,
    moments: Tensor,
    bank: Tensor,
    bank_grad: Tensor,
    weights: Sequence[int],
    biases: Sequence[int],
    *layout_parts_and_eps: Any,
) -> Tensor:
    *layout_parts, eps = layout_parts_and_eps
    kernels, layout = load("norm_act"), ragged(*layout_parts)
    device, block = moments.device, _block_channels(layout)
    grad_moments, grad_parameters = torch.empty_like(moments), torch.empty_like(moments)
    offsets = _table((tuple(weights), tuple(biases)), device)
    tiles, table, total = layout.tiles(_WHOLE_GROUP, block, device), layout.table(device), moments.shape[1]
    if len(tiles):
        kernels.scale_shift_backward_kernel[(len(tiles),)](
            *(grad.contiguous(), moments, bank, offsets, grad_moments, grad_parameters, tiles, table, total, eps),
            BLOCK_C=block,
        )
        kernels.parameter_gradient_kernel[(len(tiles),)](
            grad_parameters, offsets, bank_grad, tiles, table, total, layout.groups, BLOCK_C=block
        )
    return grad_moments


def _norm_act(x: Tensor, scale_shift: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
    *layout_parts, widths_out, activation = rest
    layout = ragged(*layout_parts)
    out = layout.with_widths(widths_out)
    y = out.empty(x.dtype, x.device)
    tiles = out.tiles(_APPLY_ROWS, _block_channels(out), x.device)
    if len(tiles):
        load("norm_act").apply_kernel[(len(tiles),)](
            x,
            scale_shift,
            x if residual is None else residual,
            y,
            tiles,
            layout.table(x.device),
            out.table(x.device),
            scale_shift.shape[1],
            ACTIVATION=ACTIVATIONS[activation],
            RESIDUAL=residual is not None,
            **_shape(out, _APPLY_ROWS),
        )
    return y


def _norm_act_backward(
    grad: Tensor, x: Tensor, scale_shift: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *layout_parts, widths_out, activation, want_residual = rest
    kernels, layout = load("norm_act"), ragged(*layout_parts)
    out = layout.with_widths(widths_out)
    rows, device = _tile_rows(layout), x.device
    stores_residual = want_residual and activation != "identity"
    grad_x = layout.empty(x.dtype, device)
    grad_residual = out.empty(x.dtype, device) if stores_residual else x.new_empty(0)
    partials, sums = _partials(layout, rows, device), _vectors(layout, device)
    tiles = (out if stores_residual else layout).tiles(rows, _block_channels(out), device)
    if len(tiles):
        kernels.apply_backward_kernel[(len(tiles),)](
            grad.contiguous(),
            x,
            scale_shift,
            x if residual is None else residual,
            grad_x,
            grad_residual if stores_residual else x,
            partials,
            tiles,
            layout.table(device),
            out.table(device),
            partials.shape[2],
            partials.stride(0),
            ACTIVATION=ACTIVATIONS[activation],
            RESIDUAL=residual is not None,
            GRAD_RESIDUAL=stores_residual,
            **_shape(out, rows, _BACKWARD_BLOCK_R),
        )
        _finish(kernels.finish_sums_kernel, partials, sums, layout, layout, ADD=False)
    return grad_x, sums, grad_residual


def _pool(x: Tensor, scale_shift: Tensor, *rest: Any) -> Tensor:
    *layout_parts, pools, activation = rest
    layout = ragged(*layout_parts)
    pixels = layout.height * layout.width
    pooled = torch.empty(layout.gate_offsets[-1], dtype=torch.float32, device=x.device)
    tiles = _selected(layout, pools).tiles(pixels, _block_channels(layout), x.device)
    if len(tiles):
        shape = _shape(layout, pixels)
        del shape["TILE_ROWS"]
        load("gate").pool_kernel[(len(tiles),)](
            *(x, scale_shift, pooled, tiles, layout.table(x.device), scale_shift.shape[1], pixels),
            ACTIVATION=ACTIVATIONS[activation],
            **shape,
        )
    return pooled


def _pool_backward(grad_scale_shift: Tensor, grad_pooled: Tensor, x: Tensor, scale_shift: Tensor, *rest: Any) -> None:
    *layout_parts, pools, activation = rest
    layout = ragged(*layout_parts)
    rows = _tile_rows(layout)
    selected = _selected(layout, pools)
    tiles = selected.tiles(rows, _block_channels(layout), x.device)
    if len(tiles):
        partials = _partials(layout, rows, x.device)
        load("gate").pool_backward_sums_kernel[(len(tiles),)](
            *(grad_pooled.contiguous(), x, scale_shift, partials, tiles, layout.table(x.device)),
            *(partials.shape[2], partials.stride(0), layout.height * layout.width),
            ACTIVATION=ACTIVATIONS[activation],
            **_shape(layout, rows, _BACKWARD_BLOCK_R),
        )
        _finish(load("norm_act").finish_sums_kernel, partials, grad_scale_shift, layout, selected, ADD=True)


def _join_gradients(
    grad: Tensor | None,
    grad_moments: Tensor,
    grad_pooled: Tensor | None,
    x: Tensor,
    moments: Tensor,
    scale_shift: Tensor | None,
    *rest: Any,
) -> Tensor:
    *layout_parts, pools, activation = rest
    layout, device = ragged(*layout_parts), x.device
    grad_x = layout.empty(x.dtype, device)
    tiles = layout.tiles(_APPLY_ROWS, _block_channels(layout), device)
    if len(tiles):
        flags = _table((tuple(map(int, pools)),), device)
        load("gate").join_gradients_kernel[(len(tiles),)](
            x if grad is None else grad.contiguous(),
            grad_moments.contiguous(),
            grad_moments if grad_pooled is None else grad_pooled.contiguous(),
            x,
            moments,
            moments if scale_shift is None else scale_shift,
            flags,
            grad_x,
            tiles,
            layout.table(device),
            moments.shape[1],
            layout.height * layout.width,
            ACTIVATION=ACTIVATIONS[activation],
            DIRECT=grad is not None,
            POOLS=grad_pooled is not None,
            **_shape(layout, _APPLY_ROWS, _BACKWARD_BLOCK_R),
        )
    return grad_x


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "masked_moments": _moments,
    "masked_scale_shift": _scale_shift,
    "masked_scale_shift_backward_": _scale_shift_backward,
    "masked_norm_act": _norm_act,
    "masked_norm_act_backward": _norm_act_backward,
    "masked_pool": _pool,
    "masked_pool_backward_": _pool_backward,
    "masked_join_gradients": _join_gradients,
}
"""By operator; registered for CUDA."""


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the device of its first tensor current: Triton launches there."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with torch.cuda.device(next(a.device for a in arguments if isinstance(a, Tensor))):
            return function(*arguments)

    return run


for _name, _function in IMPLEMENTATIONS.items():
    implement(_name, _on_its_device(_function), "CUDA")


@fake("masked_moments")
def _(x: Tensor, samples: Sequence[int], height: int, width: int, widths: Sequence[int]) -> Tensor:
    return x.new_empty((2, sum(widths)), dtype=torch.float32)


@fake("masked_scale_shift")
def _(moments: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(moments)


@fake("masked_scale_shift_backward_")
def _(grad: Tensor, moments: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(moments)


@fake("masked_norm_act")
def _(x: Tensor, scale_shift: Tensor, residual: Tensor | None, *rest: Any) -> Tensor:
    *layout_parts, widths_out, _activation = rest
    return x.new_empty(ragged(*layout_parts).with_widths(widths_out).numel)


@fake("masked_norm_act_backward")
def _(
    grad: Tensor, x: Tensor, scale_shift: Tensor, residual: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *layout_parts, widths_out, activation, want_residual = rest
    stores_residual = want_residual and activation != "identity"
    numel = ragged(*layout_parts).with_widths(widths_out).numel if stores_residual else 0
    return torch.empty_like(x), torch.empty_like(scale_shift), x.new_empty(numel)


@fake("masked_pool")
def _(x: Tensor, scale_shift: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(ragged(*rest[:4]).gate_offsets[-1], dtype=torch.float32)


@fake("masked_pool_backward_")
def _(*arguments: Any) -> None:
    return None


@fake("masked_join_gradients")
def _(grad: Tensor | None, grad_moments: Tensor, grad_pooled: Tensor | None, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)
