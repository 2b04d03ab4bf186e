"""Global average pooling of normalised and activated values of ragged groups; these values are not stored.

Pooled values are float32, one a sample and channel, at the group's gate offset. The gate itself is applied where the
projection loads its input (`pointwise`), its two small products are torch's. In the backward pass the gradients that
reach x through the pooled values, through the moments and directly are joined in one pass. Names as in `norm_act`.
"""

import triton
import triton.language as tl

from .activation import activate, slope
from .groups import ROWS, TABLE_COLUMNS, gate_offset_of, offset_of, tile_of, width_of
from .norm_act import _channels, _rows


@triton.jit(do_not_specialize=["total", "pixels"])
def pool_kernel(
    x, scale_shift, pooled, tiles, table, total, pixels,
    ALIGN: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """pooled[sample, C]: mean of act(x * scale + shift) over the pixels; a row tile is a sample."""
    group, sample, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table, group, ALIGN)
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    scale_C = tl.load(scale_shift + at_C, mask=inside_C, other=0.0)
    shift_C = tl.load(scale_shift + total + at_C, mask=inside_C, other=0.0)
    x_C = x + offset_of(table, group) + sample * pixels * width + channel_C
    sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for pixel in range(0, pixels, BLOCK_R):
        pixel_R = pixel + tl.arange(0, BLOCK_R).to(tl.int64)
        inside_RC = (pixel_R < pixels)[:, None] & inside_C[None, :]
        x_RC = tl.load(x_C[None, :] + pixel_R[:, None] * width, mask=inside_RC, other=0.0).to(tl.float32)
        a_RC = activate(x_RC * scale_C[None, :] + shift_C[None, :], ACTIVATION)
        sums_RC += tl.where(inside_RC, a_RC, 0.0)
    pooled += gate_offset_of(table, group) + sample * width + channel_C
    tl.store(pooled, tl.sum(sums_RC, axis=0) / pixels, mask=inside_C)


@triton.jit(do_not_specialize=["total", "part_stride", "pixels"])
def pool_backward_sums_kernel(
    grad_pooled, x, scale_shift, partials, tiles, table, total, part_stride, pixels,
    ALIGN: tl.constexpr, ACTIVATION: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of a tile: what reaches scale and shift through the pooled values."""
    group, row_tile, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table, group, ALIGN)
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    first, end = _rows(table, group, row_tile, TILE_ROWS)
    scale_C = tl.load(scale_shift + at_C, mask=inside_C, other=0.0)
    shift_C = tl.load(scale_shift + total + at_C, mask=inside_C, other=0.0)
    x_C = x + offset_of(table, group) + channel_C
    grad_C = grad_pooled + gate_offset_of(table, group) + channel_C
    products_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row in range(first, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        inside_RC = (row_R < end)[:, None] & inside_C[None, :]
        x_RC = tl.load(x_C[None, :] + row_R[:, None] * width, mask=inside_RC, other=0.0).to(tl.float32)
        g_RC = tl.load(grad_C[None, :] + (row_R // pixels)[:, None] * width, mask=inside_RC, other=0.0)
        g_RC *= slope(x_RC * scale_C[None, :] + shift_C[None, :], ACTIVATION)
        products_RC += g_RC * x_RC
        sums_RC += g_RC
    partials += row_tile * total + at_C
    tl.store(partials, tl.sum(products_RC, axis=0) / pixels, mask=inside_C)
    tl.store(partials + part_stride, tl.sum(sums_RC, axis=0) / pixels, mask=inside_C)


@triton.jit(do_not_specialize=["total", "pixels"])
def join_gradients_kernel(
    grad, grad_moments, grad_pooled, x, moments, scale_shift, pools, grad_x, tiles, table, total, pixels,
    ALIGN: tl.constexpr, ACTIVATION: tl.constexpr, DIRECT: tl.constexpr, POOLS: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of x: grad (if DIRECT), through the moments, and through the pooled values of groups that pools names.

    pools: int64 [G], 1 for groups whose pooled values are used.
    """
    group, row_tile, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table, group, ALIGN)
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    first, end = _rows(table, group, row_tile, TILE_ROWS)
    rows = tl.load(table + group * TABLE_COLUMNS + ROWS).to(tl.float32)
    mean_C = tl.load(moments + at_C, mask=inside_C, other=0.0)
    of_mean_C = tl.load(grad_moments + at_C, mask=inside_C, other=0.0) / rows
    of_variance_C = 2.0 * tl.load(grad_moments + total + at_C, mask=inside_C, other=0.0) / rows
    scale_C = tl.load(scale_shift + at_C, mask=inside_C, other=0.0)
    shift_C = tl.load(scale_shift + total + at_C, mask=inside_C, other=0.0)
    at = offset_of(table, group)
    pooled_C = grad_pooled + gate_offset_of(table, group) + channel_C
    for row in range(first, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        inside_RC = (row_R < end)[:, None] & inside_C[None, :]
        at_RC = at + row_R[:, None] * width + channel_C[None, :]
        x_RC = tl.load(x + at_RC, mask=inside_RC, other=0.0).to(tl.float32)
        g_RC = of_mean_C[None, :] + of_variance_C[None, :] * (x_RC - mean_C[None, :])
        if DIRECT:
            g_RC += tl.load(grad + at_RC, mask=inside_RC, other=0.0).to(tl.float32)
        if POOLS:  # noqa: SIM102  a constant, so that nothing is loaded without
            if tl.load(pools + group) != 0:
                p_RC = tl.load(pooled_C[None, :] + (row_R // pixels)[:, None] * width, mask=inside_RC, other=0.0)
                p_RC *= slope(x_RC * scale_C[None, :] + shift_C[None, :], ACTIVATION)
                g_RC += p_RC * scale_C[None, :] / pixels
        tl.store(grad_x + at_RC, g_RC.to(grad_x.dtype.element_ty), mask=inside_RC)
