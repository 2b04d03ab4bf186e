"""Pointwise (1x1) convolution of a batch of several paths: one grouped product with a prologue and an epilogue.

Group g computes y = p @ W_g^T, where p = act(x * scale + shift) * gate is made while x is loaded and W_g [out, in] lies
in the flat float32 parameter bank. The grid lists the tiles of live groups alone. Products accumulate in float32; the
operands have the type of x.

Sums over rows (moments of y, gradients of scale, shift and gate) leave a tile as partial results, one row of the
workspace a tile of rows; `reduction` adds them in a fixed order. Weight gradients likewise: a program sums a run of
rows of one group, and `add_weight_gradient_kernel` adds up the runs of all groups that share the operation.

Letters after a name are its axes: R rows, I channels in, O channels out of a tile. No program needs another's results.
"""

import triton
import triton.language as tl

from .activation import activate, slope
from .groups import ROWS, TABLE_COLUMNS, channel_offset_of, gate_offset_of, offset_of, rows_of_tile, tile_of, width_of

# Columns of the layer's table: where the weights of a group begin in the bank, and its rows in the workspace.
WEIGHT_OFFSET = tl.constexpr(0)
FIRST_PARTIAL = tl.constexpr(1)
LAYER_COLUMNS = tl.constexpr(2)
# Jobs of the weight gradient: group, first row, end of the rows, tile of O, tile of I.
JOB_COLUMNS = tl.constexpr(5)
# Its sums: where the weights begin, channels in, channels out, tile of O, tile of I, first job, number of jobs.
SUM_COLUMNS = tl.constexpr(7)
# Partial results that are added at a time.
RUNS = tl.constexpr(8)


@triton.jit
def _weights_of(layer, group, ALIGN: tl.constexpr):
    return tl.multiple_of(tl.load(layer + group * LAYER_COLUMNS + WEIGHT_OFFSET), ALIGN)


@triton.jit
def _load_norm(scale, shift, channel, inside, NORM: tl.constexpr):
    a = tl.full(channel.shape, 1.0, tl.float32)
    b = tl.full(channel.shape, 0.0, tl.float32)
    if NORM:
        a = tl.load(scale + channel, mask=inside, other=0.0)
        b = tl.load(shift + channel, mask=inside, other=0.0)
    return a, b


@triton.jit
def _load_gradient(
    grad, y, moments, grad_moments, at_RO, inside_RO, channel_O, inside_O, rows, num_channels, MOMENTS: tl.constexpr
):
    """The gradient of y, with what reaches y through its mean and variance; zero outside."""
    g_RO = tl.load(grad + at_RO, mask=inside_RO, other=0.0)
    if MOMENTS:
        mean_O = tl.load(moments + channel_O, mask=inside_O, other=0.0)
        of_mean_O = tl.load(grad_moments + channel_O, mask=inside_O, other=0.0)
        of_variance_O = tl.load(grad_moments + num_channels + channel_O, mask=inside_O, other=0.0)
        y_RO = tl.load(y + at_RO, mask=inside_RO, other=0.0).to(tl.float32)
        through_RO = (of_mean_O[None, :] + 2 * of_variance_O[None, :] * (y_RO - mean_O[None, :])) / rows
        g_RO = tl.where(inside_RO, g_RO.to(tl.float32) + through_RO, 0.0).to(grad.dtype.element_ty)
    return g_RO


@triton.jit(do_not_specialize=["pixels"])
def forward_kernel(
    x, bank, scale, shift, gate, y, partials, tiles, table_in, table_out, layer, pixels, partial_stride,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_BANK: tl.constexpr, NORM: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, MOMENTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One tile y [R, O]; with MOMENTS also mean and sum of squared differences of its columns, as y is stored."""
    group, row_tile, out_tile = tile_of(tiles, tl.program_id(0))
    width_in = width_of(table_in, group, ALIGN_IN)
    width_out = width_of(table_out, group, ALIGN_OUT)
    row_R, exists_R, sample = rows_of_tile(table_in, group, row_tile, pixels, BLOCK_R, GATED)
    out_O = out_tile * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_O = out_O < width_out
    x += offset_of(table_in, group)
    w_O = bank + _weights_of(layer, group, ALIGN_BANK) + out_O * width_in
    norm_at = channel_offset_of(table_in, group)
    gate_at = gate_offset_of(table_in, group) + sample * width_in

    y_RO = tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    for start in range(0, width_in, BLOCK_I):
        in_I = start + tl.arange(0, BLOCK_I)
        inside_I = in_I < width_in
        x_RI = tl.load(
            x + row_R[:, None] * width_in + in_I[None, :], mask=exists_R[:, None] & inside_I[None, :], other=0.0
        )
        w_IO = tl.load(w_O[None, :] + in_I[:, None], mask=inside_O[None, :] & inside_I[:, None], other=0.0)
        if NORM or ACTIVATION != 0 or GATED:
            scale_I, shift_I = _load_norm(scale, shift, norm_at + in_I, inside_I, NORM)
            p_RI = activate(x_RI.to(tl.float32) * scale_I[None, :] + shift_I[None, :], ACTIVATION)
            if GATED:
                p_RI *= tl.load(gate + gate_at + in_I, mask=inside_I, other=0.0)[None, :]
            x_RI = p_RI.to(x.dtype.element_ty)
        y_RO = tl.dot(x_RI, w_IO.to(x.dtype.element_ty), y_RO, input_precision=PRECISION)

    stored_RO = y_RO.to(y.dtype.element_ty)
    inside_RO = exists_R[:, None] & inside_O[None, :]
    tl.store(y + offset_of(table_out, group) + row_R[:, None] * width_out + out_O[None, :], stored_RO, mask=inside_RO)
    if MOMENTS:
        y_RO = tl.where(inside_RO, stored_RO.to(tl.float32), 0.0)
        mean_O = tl.sum(y_RO, axis=0) / tl.sum(exists_R.to(tl.float32), axis=0)
        difference_RO = tl.where(inside_RO, y_RO - mean_O[None, :], 0.0)
        partial = tl.load(layer + group * LAYER_COLUMNS + FIRST_PARTIAL) + row_tile
        partials += partial * 2 * partial_stride + out_O
        tl.store(partials, mean_O, mask=inside_O)
        tl.store(partials + partial_stride, tl.sum(difference_RO * difference_RO, axis=0), mask=inside_O)


@triton.jit(do_not_specialize=["pixels", "num_channels"])
def data_gradient_kernel(
    grad, y, moments, grad_moments, bank, x, scale, shift, gate, grad_x, norm_partials, gate_partials,
    tiles, table_in, table_out, layer, pixels, partial_stride, num_channels,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr, ALIGN_BANK: tl.constexpr, NORM: tl.constexpr,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, MOMENTS: tl.constexpr, SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One tile [R, I] of the gradient of x; with SUMS also its columns' sums for scale, shift and gate."""
    group, row_tile, in_tile = tile_of(tiles, tl.program_id(0))
    width_in = width_of(table_in, group, ALIGN_IN)
    width_out = width_of(table_out, group, ALIGN_OUT)
    row_R, exists_R, sample = rows_of_tile(table_in, group, row_tile, pixels, BLOCK_R, GATED)
    in_I = in_tile * BLOCK_I + tl.arange(0, BLOCK_I)
    inside_I = in_I < width_in
    rows = tl.load(table_in + group * TABLE_COLUMNS + ROWS).to(tl.float32)
    at_R = offset_of(table_out, group) + row_R * width_out
    channels_at = channel_offset_of(table_out, group)
    w_I = bank + _weights_of(layer, group, ALIGN_BANK) + in_I

    p_RI = tl.zeros((BLOCK_R, BLOCK_I), tl.float32)  # the gradient of p
    for start in range(0, width_out, BLOCK_O):
        out_O = start + tl.arange(0, BLOCK_O)
        inside_O = out_O < width_out
        w_OI = tl.load(w_I[None, :] + out_O[:, None] * width_in, mask=inside_O[:, None] & inside_I[None, :], other=0.0)
        g_RO = _load_gradient(
            grad, y, moments, grad_moments, at_R[:, None] + out_O[None, :], exists_R[:, None] & inside_O[None, :],
            channels_at + out_O, inside_O, rows, num_channels, MOMENTS,
        )  # fmt: skip
        p_RI = tl.dot(g_RO, w_OI.to(grad.dtype.element_ty), p_RI, input_precision=PRECISION)

    inside_RI = exists_R[:, None] & inside_I[None, :]
    at_RI = offset_of(table_in, group) + row_R[:, None] * width_in + in_I[None, :]
    if NORM or ACTIVATION != 0 or GATED:
        x_RI = tl.load(x + at_RI, mask=inside_RI, other=0.0).to(tl.float32)
        scale_I, shift_I = _load_norm(scale, shift, channel_offset_of(table_in, group) + in_I, inside_I, NORM)
        z_RI = x_RI * scale_I[None, :] + shift_I[None, :]
        partial = tl.load(layer + group * LAYER_COLUMNS + FIRST_PARTIAL) + row_tile
        if GATED:
            if SUMS:
                gated_RI = tl.where(inside_RI, p_RI * activate(z_RI, ACTIVATION), 0.0)
                gate_partials += partial * partial_stride + in_I
                tl.store(gate_partials, tl.sum(gated_RI, axis=0), mask=inside_I)
            gate_at = gate_offset_of(table_in, group) + sample * width_in
            p_RI *= tl.load(gate + gate_at + in_I, mask=inside_I, other=0.0)[None, :]
        p_RI *= slope(z_RI, ACTIVATION)
        if NORM:
            if SUMS:
                p_RI = tl.where(inside_RI, p_RI, 0.0)
                norm_partials += partial * 2 * partial_stride + in_I
                tl.store(norm_partials, tl.sum(p_RI * x_RI, axis=0), mask=inside_I)
                tl.store(norm_partials + partial_stride, tl.sum(p_RI, axis=0), mask=inside_I)
            p_RI *= scale_I[None, :]
    tl.store(grad_x + at_RI, p_RI.to(grad_x.dtype.element_ty), mask=inside_RI)


@triton.jit(do_not_specialize=["pixels", "num_channels"])
def weight_gradient_kernel(
    grad, y, moments, grad_moments, x, scale, shift, gate, runs, jobs, table_in, table_out, pixels, num_channels,
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    MOMENTS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """A tile [O, I] of the weight gradient from a run of rows of one group, to its place in `runs`."""
    program = tl.program_id(0).to(tl.int64)
    jobs += program * JOB_COLUMNS
    group = tl.load(jobs)
    first, end = tl.load(jobs + 1), tl.load(jobs + 2)
    out_O = tl.load(jobs + 3) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_I = tl.load(jobs + 4) * BLOCK_I + tl.arange(0, BLOCK_I)
    width_in = width_of(table_in, group, ALIGN_IN)
    width_out = width_of(table_out, group, ALIGN_OUT)
    inside_O, inside_I = out_O < width_out, in_I < width_in
    rows = tl.load(table_in + group * TABLE_COLUMNS + ROWS).to(tl.float32)
    x_I = x + offset_of(table_in, group) + in_I
    y_at = offset_of(table_out, group)
    channel_O = channel_offset_of(table_out, group) + out_O
    gate_I = gate + gate_offset_of(table_in, group) + in_I
    scale_I, shift_I = _load_norm(scale, shift, channel_offset_of(table_in, group) + in_I, inside_I, NORM)

    w_OI = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    for start in range(first, end, BLOCK_R):
        row_R = start + tl.arange(0, BLOCK_R)
        exists_R = row_R < end
        inside_RI = exists_R[:, None] & inside_I[None, :]
        g_RO = _load_gradient(
            grad, y, moments, grad_moments, y_at + row_R[:, None] * width_out + out_O[None, :],
            exists_R[:, None] & inside_O[None, :], channel_O, inside_O, rows, num_channels, MOMENTS,
        )  # fmt: skip
        p_RI = tl.load(x_I[None, :] + row_R[:, None] * width_in, mask=inside_RI, other=0.0)
        if NORM or ACTIVATION != 0 or GATED:
            a_RI = activate(p_RI.to(tl.float32) * scale_I[None, :] + shift_I[None, :], ACTIVATION)
            if GATED:
                sample_R = row_R // pixels
                a_RI *= tl.load(gate_I[None, :] + sample_R[:, None] * width_in, mask=inside_RI, other=0.0)
            p_RI = a_RI.to(x.dtype.element_ty)
        w_OI = tl.dot(tl.trans(g_RO), p_RI, w_OI, input_precision=PRECISION)

    at_OI = tl.arange(0, BLOCK_O)[:, None] * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    tl.store(runs + program * BLOCK_O * BLOCK_I + at_OI, w_OI)


@triton.jit
def add_weight_gradient_kernel(
    runs, bank_grad, sums, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds the runs of a tile to the gradient of the bank, in the order of their jobs; BLOCK elements a program."""
    sums += tl.program_id(0).to(tl.int64) * SUM_COLUMNS
    weights, width_in, width_out = tl.load(sums), tl.load(sums + 1), tl.load(sums + 2)
    first, count = tl.load(sums + 5), tl.load(sums + 6)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out = tl.load(sums + 3) * BLOCK_O + element // BLOCK_I
    channel = tl.load(sums + 4) * BLOCK_I + element % BLOCK_I
    inside = (element < BLOCK_O * BLOCK_I) & (out < width_out) & (channel < width_in)

    total = tl.zeros((RUNS, BLOCK), tl.float32)
    for start in range(0, count, RUNS):
        run = start + tl.arange(0, RUNS)
        at = (first + run)[:, None] * (BLOCK_O * BLOCK_I) + element[None, :]
        total += tl.load(runs + at, mask=(run < count)[:, None] & inside[None, :], other=0.0)
    bank_grad += weights + out * width_in + channel
    tl.store(bank_grad, tl.load(bank_grad, mask=inside, other=0.0) + tl.sum(total, axis=0), mask=inside)
