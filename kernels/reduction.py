"""Sums over rows, second step: partial results of tiles of rows are joined FAN at a time, in a fixed order.

A partial result is one row of the workspace, float32 [PARTS, stride]. One launch joins each run of partial results that
a job names into one; launches follow one another until one is left of each group (or of each sample), so that the order
of the additions depends on the shape alone. An error grows with the logarithm of the number of tiles.
"""

import triton
import triton.language as tl

# Columns of the jobs: channels, first partial result, number of them (at most FAN), and the row of the result.
JOB_COLUMNS = tl.constexpr(4)


@triton.jit
def sum_kernel(
    partials, result, jobs, stride, row_stride, part_stride,
    PARTS: tl.constexpr, FAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds partial results. Part p of channel c goes to element row * row_stride + p * part_stride + c."""
    jobs += tl.program_id(0).to(tl.int64) * JOB_COLUMNS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < tl.load(jobs)
    run = tl.arange(0, FAN)
    mask = (run < tl.load(jobs + 2))[:, None] & inside[None, :]
    at = (tl.load(jobs + 1) + run)[:, None] * (PARTS * stride) + channel[None, :]
    to = tl.load(jobs + 3) * row_stride + channel
    for part in tl.static_range(PARTS):
        values = tl.load(partials + at + part * stride, mask=mask, other=0.0)
        tl.store(result + to + part * part_stride, tl.sum(values, axis=0), mask=inside)


@triton.jit
def moments_kernel(
    partials, counts, result, jobs, stride, row_stride, part_stride,
    LAST: tl.constexpr, FAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Joins means and sums of squared differences of parts that have counts[i] values; the LAST gives the variance.

    With n_i values, mean m_i and squares s_i: m = sum n_i m_i / n, s = sum s_i + n_i (m_i - m)^2 (Chan, Golub, LeVeque,
    https://doi.org/10.1080/00031305.1983.10483115). Nothing cancels, whatever the mean is.
    """
    jobs += tl.program_id(0).to(tl.int64) * JOB_COLUMNS
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < tl.load(jobs)
    run = tl.arange(0, FAN)
    first = tl.load(jobs + 1)
    used = run < tl.load(jobs + 2)
    mask = used[:, None] & inside[None, :]
    at = (first + run)[:, None] * (2 * stride) + channel[None, :]
    n = tl.load(counts + first + run, mask=used, other=0.0)
    total = tl.sum(n, axis=0)
    means = tl.load(partials + at, mask=mask, other=0.0)
    mean = tl.sum(n[:, None] * means, axis=0) / total
    means -= mean[None, :]
    squares = tl.load(partials + at + stride, mask=mask, other=0.0) + n[:, None] * means * means
    second = tl.sum(squares, axis=0)
    if LAST:
        second = second / total
    to = tl.load(jobs + 3) * row_stride + channel
    tl.store(result + to, mean, mask=inside)
    tl.store(result + to + part_stride, second, mask=inside)
