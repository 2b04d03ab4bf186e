"""Ragged groups as kernels see them: the columns of `Ragged.table` and `Ragged.tiles`, and the rows of a tile.

All addresses are int64: a batch has more elements than an int32 can count.
"""

import triton
import triton.language as tl

# Columns of the table of groups; greedynas_fast.ops.ragged has the same numbers, and a test says so.
SAMPLES = tl.constexpr(0)
WIDTH = tl.constexpr(1)
ROWS = tl.constexpr(2)
OFFSET = tl.constexpr(3)
CHANNEL_OFFSET = tl.constexpr(4)
GATE_OFFSET = tl.constexpr(5)
TABLE_COLUMNS = tl.constexpr(6)
# Elements that the offset of a group is a multiple of.
ALIGNMENT = tl.constexpr(16)
TILE_COLUMNS = tl.constexpr(3)


@triton.jit
def tile_of(tiles, program):
    """(group, row tile, channel tile) of a program, int64."""
    entry = tiles + program * TILE_COLUMNS
    group = tl.load(entry).to(tl.int64)
    row_tile = tl.load(entry + 1).to(tl.int64)
    channel_tile = tl.load(entry + 2).to(tl.int64)
    return group, row_tile, channel_tile


@triton.jit
def width_of(table, group, ALIGN: tl.constexpr):
    """Channels of a group. ALIGN divides the channels of all groups: loads of that many elements stay aligned."""
    return tl.multiple_of(tl.load(table + group * TABLE_COLUMNS + WIDTH), ALIGN)


@triton.jit
def offset_of(table, group):
    """First element of a group."""
    return tl.multiple_of(tl.load(table + group * TABLE_COLUMNS + OFFSET), ALIGNMENT)


@triton.jit
def channel_offset_of(table, group):
    """First element of a group in a vector of one value a channel."""
    return tl.load(table + group * TABLE_COLUMNS + CHANNEL_OFFSET)


@triton.jit
def gate_offset_of(table, group):
    """First element of a group in a vector of gates."""
    return tl.load(table + group * TABLE_COLUMNS + GATE_OFFSET)


@triton.jit
def rows_of_tile(table, group, row_tile, pixels, BLOCK: tl.constexpr, PER_SAMPLE: tl.constexpr):
    """(rows [BLOCK], which of them exist [BLOCK], sample of the rows) of a tile; the sample only if PER_SAMPLE."""
    if PER_SAMPLE:  # no tile holds rows of two samples
        tiles = tl.cdiv(pixels, BLOCK)
        sample = row_tile // tiles
        row = (row_tile - sample * tiles) * BLOCK + tl.arange(0, BLOCK)
        exists = row < pixels
        row += sample * pixels
    else:
        sample = row_tile * 0
        row = row_tile * BLOCK + tl.arange(0, BLOCK)
        exists = row < tl.load(table + group * TABLE_COLUMNS + ROWS)
    return row, exists, sample
