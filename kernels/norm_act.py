"""Batch norm, residual and activation over ragged groups, with the statistics of each group.

Forward: `moments_kernel` and `finish_moments_kernel` (where no product has given the moments), `scale_shift_kernel`,
`apply_kernel`. Backward: `apply_backward_kernel` and `finish_sums_kernel`, `scale_shift_backward_kernel`,
`parameter_gradient_kernel`; what reaches x through its moments is added by who made them.

Moments are [2, total] with a value a channel of each group: means, then biased variances; scale and shift likewise.
Sums have two stages of fixed order. A stage-one program sums the rows of its tile and leaves them in
partials [2, row_tiles, total]; a stage-two program adds the tiles of a group. Letters: R rows, C channels, T row tiles.
"""

import triton
import triton.language as tl

from .activation import activate, slope
from .groups import ROWS, TABLE_COLUMNS, WIDTH, channel_offset_of, offset_of, tile_of, width_of


@triton.jit
def _channels(table, group, channel_tile, BLOCK_C: tl.constexpr):
    """(channels [C], which of them the group has [C], their places in vectors of one value a channel [C])."""
    channel = channel_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < tl.load(table + group * TABLE_COLUMNS + WIDTH)
    return channel, inside, channel_offset_of(table, group) + channel


@triton.jit
def _rows(table, group, row_tile, TILE_ROWS: tl.constexpr):
    """(first row, end of the rows) of a tile."""
    first = row_tile * TILE_ROWS
    return first, tl.minimum(first + TILE_ROWS, tl.load(table + group * TABLE_COLUMNS + ROWS))


@triton.jit(do_not_specialize=["total", "part_stride"])
def moments_kernel(
    x, partials, tiles, table, total, part_stride,
    ALIGN: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of a tile: means, and sums of squared differences from them; shifted by the first row, so that little cancels."""
    group, row_tile, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table, group, ALIGN)
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    first, end = _rows(table, group, row_tile, TILE_ROWS)
    x_C = x + offset_of(table, group) + channel_C
    origin_C = tl.load(x_C + first * width, mask=inside_C, other=0.0).to(tl.float32)
    sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row in range(first, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        inside_RC = (row_R < end)[:, None] & inside_C[None, :]
        x_RC = tl.load(x_C[None, :] + row_R[:, None] * width, mask=inside_RC, other=0.0).to(tl.float32)
        difference_RC = tl.where(inside_RC, x_RC - origin_C[None, :], 0.0)
        sums_RC += difference_RC
        squares_RC += difference_RC * difference_RC
    count = (end - first).to(tl.float32)
    sums_C = tl.sum(sums_RC, axis=0)
    squares_C = tl.maximum(tl.sum(squares_RC, axis=0) - sums_C * sums_C / count, 0.0)
    partials += row_tile * total + at_C
    tl.store(partials, origin_C + sums_C / count, mask=inside_C)
    tl.store(partials + part_stride, squares_C, mask=inside_C)


@triton.jit(do_not_specialize=["total", "part_stride"])
def finish_moments_kernel(
    partials, moments, tiles, table, total, part_stride,
    TILE_ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Joins the tiles of a group: the mean of their means, then the squares around it (Chan, Golub, LeVeque 1983)."""
    group, _, channel_tile = tile_of(tiles, tl.program_id(0))
    _, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    rows = tl.load(table + group * TABLE_COLUMNS + ROWS)
    row_tiles = tl.cdiv(rows, TILE_ROWS)
    mean_C = partials + at_C
    origin_C = tl.load(mean_C, mask=inside_C, other=0.0)
    sums_TC = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for tile in range(0, row_tiles, BLOCK_T):
        tile_T = tile + tl.arange(0, BLOCK_T).to(tl.int64)
        count_T = tl.minimum(rows - tile_T * TILE_ROWS, TILE_ROWS).to(tl.float32)
        inside_TC = (tile_T < row_tiles)[:, None] & inside_C[None, :]
        mean_TC = tl.load(mean_C[None, :] + tile_T[:, None] * total, mask=inside_TC, other=0.0)
        sums_TC += tl.where(inside_TC, count_T[:, None] * (mean_TC - origin_C[None, :]), 0.0)
    joined_C = origin_C + tl.sum(sums_TC, axis=0) / rows.to(tl.float32)
    squares_TC = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for tile in range(0, row_tiles, BLOCK_T):
        tile_T = tile + tl.arange(0, BLOCK_T).to(tl.int64)
        count_T = tl.minimum(rows - tile_T * TILE_ROWS, TILE_ROWS).to(tl.float32)
        inside_TC = (tile_T < row_tiles)[:, None] & inside_C[None, :]
        at_TC = mean_C[None, :] + tile_T[:, None] * total
        difference_TC = tl.load(at_TC, mask=inside_TC, other=0.0) - joined_C[None, :]
        around_TC = tl.load(at_TC + part_stride, mask=inside_TC, other=0.0)
        squares_TC += tl.where(inside_TC, around_TC + count_T[:, None] * difference_TC * difference_TC, 0.0)
    tl.store(moments + at_C, joined_C, mask=inside_C)
    tl.store(moments + total + at_C, tl.sum(squares_TC, axis=0) / rows.to(tl.float32), mask=inside_C)


@triton.jit(do_not_specialize=["total"])
def scale_shift_kernel(moments, bank, offsets, result, tiles, table, total, eps, BLOCK_C: tl.constexpr):
    """Scale and shift [2, total]: weight / std, bias - mean * weight / std; offsets [G, 2] are those in the bank."""
    group, _, channel_tile = tile_of(tiles, tl.program_id(0))
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    weight_C = tl.load(bank + tl.load(offsets + group * 2) + channel_C, mask=inside_C, other=0.0)
    bias_C = tl.load(bank + tl.load(offsets + group * 2 + 1) + channel_C, mask=inside_C, other=0.0)
    mean_C = tl.load(moments + at_C, mask=inside_C, other=0.0)
    variance_C = tl.load(moments + total + at_C, mask=inside_C, other=0.0)
    scale_C = weight_C / tl.sqrt_rn(variance_C + eps)
    tl.store(result + at_C, scale_C, mask=inside_C)
    tl.store(result + total + at_C, bias_C - mean_C * scale_C, mask=inside_C)


@triton.jit(do_not_specialize=["total"])
def scale_shift_backward_kernel(
    grad, moments, bank, offsets, grad_moments, grad_parameters, tiles, table, total, eps, BLOCK_C: tl.constexpr
):
    """From the gradients of scale and shift [2, total] those of the moments and of weight and bias, both [2, total]."""
    group, _, channel_tile = tile_of(tiles, tl.program_id(0))
    channel_C, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    weight_C = tl.load(bank + tl.load(offsets + group * 2) + channel_C, mask=inside_C, other=0.0)
    mean_C = tl.load(moments + at_C, mask=inside_C, other=0.0)
    inverse_C = 1.0 / tl.sqrt_rn(tl.load(moments + total + at_C, mask=inside_C, other=1.0) + eps)
    of_shift_C = tl.load(grad + total + at_C, mask=inside_C, other=0.0)
    of_weight_C = (tl.load(grad + at_C, mask=inside_C, other=0.0) - mean_C * of_shift_C) * inverse_C
    scale_C = weight_C * inverse_C
    tl.store(grad_moments + at_C, -of_shift_C * scale_C, mask=inside_C)
    tl.store(grad_moments + total + at_C, -0.5 * of_weight_C * scale_C * inverse_C, mask=inside_C)
    tl.store(grad_parameters + at_C, of_weight_C, mask=inside_C)
    tl.store(grad_parameters + total + at_C, of_shift_C, mask=inside_C)


@triton.jit(do_not_specialize=["total", "groups"])
def parameter_gradient_kernel(grad_parameters, offsets, bank_grad, tiles, table, total, groups, BLOCK_C: tl.constexpr):
    """Adds gradients of weight and bias to the bank's; the first group of an operation adds those of all, in order."""
    group, _, channel_tile = tile_of(tiles, tl.program_id(0))
    channel_C, inside_C, _ = _channels(table, group, channel_tile, BLOCK_C)
    weight_at = tl.load(offsets + group * 2)
    earlier = 0
    of_weight_C = tl.zeros((BLOCK_C,), tl.float32)
    of_bias_C = tl.zeros((BLOCK_C,), tl.float32)
    for other in range(0, groups):
        live = tl.load(table + other * TABLE_COLUMNS + ROWS) > 0
        same = live & (tl.load(offsets + other * 2) == weight_at)
        earlier += (same & (other < group)).to(tl.int32)
        # The width as a bound, 0 for groups of other operations: a mask that is one vector.
        bound = tl.load(table + other * TABLE_COLUMNS + WIDTH) * same.to(tl.int64)
        at_C = channel_offset_of(table, other) + channel_C
        of_weight_C += tl.load(grad_parameters + at_C, mask=channel_C < bound, other=0.0)
        of_bias_C += tl.load(grad_parameters + total + at_C, mask=channel_C < bound, other=0.0)
    if earlier == 0:
        weight_C = bank_grad + weight_at + channel_C
        bias_C = bank_grad + tl.load(offsets + group * 2 + 1) + channel_C
        tl.store(weight_C, tl.load(weight_C, mask=inside_C, other=0.0) + of_weight_C, mask=inside_C)
        tl.store(bias_C, tl.load(bias_C, mask=inside_C, other=0.0) + of_bias_C, mask=inside_C)


@triton.jit(do_not_specialize=["total"])
def apply_kernel(
    x, scale_shift, residual, y, tiles, table, table_out, total,
    ALIGN: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gives y = act(x * scale + shift + residual); a group that is masked in x is a copy of its residual."""
    group, row_tile, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table_out, group, ALIGN)
    channel_C, inside_C, _ = _channels(table_out, group, channel_tile, BLOCK_C)
    _, normed_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    first, end = _rows(table_out, group, row_tile, TILE_ROWS)
    scale_C = tl.load(scale_shift + at_C, mask=normed_C, other=0.0)
    shift_C = tl.load(scale_shift + total + at_C, mask=normed_C, other=0.0)
    x += offset_of(table, group)
    out = offset_of(table_out, group)
    for row in range(first, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        inside_RC = (row_R < end)[:, None] & inside_C[None, :]
        at_RC = row_R[:, None] * width + channel_C[None, :]
        x_RC = tl.load(x + at_RC, mask=(row_R < end)[:, None] & normed_C[None, :], other=0.0).to(tl.float32)
        z_RC = x_RC * scale_C[None, :] + shift_C[None, :]
        if RESIDUAL:
            z_RC += tl.load(residual + out + at_RC, mask=inside_RC, other=0.0).to(tl.float32)
            z_RC = tl.where(normed_C[None, :], activate(z_RC, ACTIVATION), z_RC)
        else:
            z_RC = activate(z_RC, ACTIVATION)
        tl.store(y + out + at_RC, z_RC.to(y.dtype.element_ty), mask=inside_RC)


@triton.jit(do_not_specialize=["total", "part_stride"])
def apply_backward_kernel(
    grad, x, scale_shift, residual, grad_x, grad_residual, partials, tiles, table, table_out, total, part_stride,
    ALIGN: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, GRAD_RESIDUAL: tl.constexpr,
    TILE_ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of x and residual, and of a tile the sums that are the gradients of scale and shift, in one pass."""
    group, row_tile, channel_tile = tile_of(tiles, tl.program_id(0))
    width = width_of(table_out, group, ALIGN)
    channel_C, inside_C, _ = _channels(table_out, group, channel_tile, BLOCK_C)
    _, normed_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    first, end = _rows(table_out, group, row_tile, TILE_ROWS)
    scale_C = tl.load(scale_shift + at_C, mask=normed_C, other=0.0)
    shift_C = tl.load(scale_shift + total + at_C, mask=normed_C, other=0.0)
    x_at = offset_of(table, group)
    out = offset_of(table_out, group)
    products_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    sums_RC = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row in range(first, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        inside_RC = (row_R < end)[:, None] & inside_C[None, :]
        normed_RC = (row_R < end)[:, None] & normed_C[None, :]
        at_RC = row_R[:, None] * width + channel_C[None, :]
        g_RC = tl.load(grad + out + at_RC, mask=inside_RC, other=0.0).to(tl.float32)
        x_RC = tl.load(x + x_at + at_RC, mask=normed_RC, other=0.0).to(tl.float32)
        if ACTIVATION != 0:
            z_RC = x_RC * scale_C[None, :] + shift_C[None, :]
            if RESIDUAL:
                z_RC += tl.load(residual + out + at_RC, mask=inside_RC, other=0.0).to(tl.float32)
            g_RC = tl.where(normed_C[None, :], g_RC * slope(z_RC, ACTIVATION), g_RC)
        if GRAD_RESIDUAL:
            tl.store(grad_residual + out + at_RC, g_RC.to(grad_residual.dtype.element_ty), mask=inside_RC)
        tl.store(grad_x + x_at + at_RC, (g_RC * scale_C[None, :]).to(grad_x.dtype.element_ty), mask=normed_RC)
        products_RC += g_RC * x_RC
        sums_RC += g_RC
    partials += row_tile * total + at_C
    tl.store(partials, tl.sum(products_RC, axis=0), mask=normed_C)
    tl.store(partials + part_stride, tl.sum(sums_RC, axis=0), mask=normed_C)


@triton.jit(do_not_specialize=["total", "part_stride"])
def finish_sums_kernel(
    partials, result, tiles, table, total, part_stride,
    ADD: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds up the tiles of a group: partials [2, row_tiles, total] -> result [2, total]; ADD: on top of it."""
    group, _, channel_tile = tile_of(tiles, tl.program_id(0))
    _, inside_C, at_C = _channels(table, group, channel_tile, BLOCK_C)
    row_tiles = tl.cdiv(tl.load(table + group * TABLE_COLUMNS + ROWS), TILE_ROWS)
    for part in tl.static_range(2):
        source_C = partials + part_stride * part + at_C
        sums_TC = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for tile in range(0, row_tiles, BLOCK_T):
            tile_T = tile + tl.arange(0, BLOCK_T).to(tl.int64)
            inside_TC = (tile_T < row_tiles)[:, None] & inside_C[None, :]
            sums_TC += tl.load(source_C[None, :] + tile_T[:, None] * total, mask=inside_TC, other=0.0)
        sum_C = tl.sum(sums_TC, axis=0)
        if ADD:
            sum_C += tl.load(result + total * part + at_C, mask=inside_C, other=0.0)
        tl.store(result + total * part + at_C, sum_C, mask=inside_C)
