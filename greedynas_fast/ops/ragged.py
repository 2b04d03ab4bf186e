"""The batch of several paths at one layer: groups of samples, each with the width that its operation has.

A *ragged* activation is one flat tensor; group g is NHWC `[samples[g], height, width, widths[g]]` at element
`offsets[g]`. A masked group (its operation is the identity, or not in this layer) has width 0: no room, no grid cell,
no gradient. Offsets are multiples of 16 elements, and what lies between two groups is undefined.

Vectors beside an activation are flat as well: one value a channel of each group (`channel_offsets`: scale, shift,
statistics), and one a sample and channel of each group (`gate_offsets`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from greedynas_fast.errors import InputError

# Columns of `Ragged.table`.
SAMPLES, WIDTH, ROWS, OFFSET, CHANNEL_OFFSET, GATE_OFFSET = range(6)
TABLE_COLUMNS = 6
# Columns of `Ragged.tiles`.
GROUP, ROW_TILE, CHANNEL_TILE = range(3)
# 16 elements are 32 or 64 bytes: wide loads stay aligned wherever the width allows them.
ALIGNMENT = 16


@dataclass(frozen=True)
class Ragged:
    """Shape of a ragged activation.

    Attributes:
        samples: samples of each group.
        height: of all groups.
        width: of all groups.
        widths: channels of each group; 0 masks it.
        rows: pixels of each group, samples x height x width; also of masked ones.
        live: the groups that have an element.
        offsets: first element of each group.
        channel_offsets: first element of each group in a vector of one value a channel, and as one more entry the
            vector's length.
        gate_offsets: the same of a vector of one value a sample and channel, [samples, width] a group.
        numel: elements of the flat tensor, the gaps included.

    Raises:
        InputError: lengths that differ, a negative number, or no pixel.
    """

    samples: tuple[int, ...]
    height: int
    width: int
    widths: tuple[int, ...]
    rows: tuple[int, ...] = field(init=False, repr=False, compare=False)
    live: tuple[int, ...] = field(init=False, repr=False, compare=False)
    offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    channel_offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    gate_offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    numel: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.widths):
            raise InputError(f"ragged: got samples of {len(self.samples)} groups, but widths of {len(self.widths)}")
        if min((*self.samples, *self.widths), default=0) < 0:
            raise InputError(f"ragged: expected no negative number, got samples {self.samples}, widths {self.widths}")
        if self.height < 1 or self.width < 1:
            raise InputError(f"ragged: expected height and width of at least 1, got {self.height} x {self.width}")
        rows = tuple(samples * self.height * self.width for samples in self.samples)
        sizes = [row * width for row, width in zip(rows, self.widths, strict=True)]
        gates = [samples * width for samples, width in zip(self.samples, self.widths, strict=True)]
        *offsets, numel = accumulate((ALIGNMENT * math.ceil(size / ALIGNMENT) for size in sizes), initial=0)
        for name, value in (
            ("rows", rows),
            ("live", tuple(g for g, size in enumerate(sizes) if size)),
            ("offsets", tuple(offsets)),
            ("channel_offsets", tuple(accumulate(self.widths, initial=0))),
            ("gate_offsets", tuple(accumulate(gates, initial=0))),
            ("numel", numel),
        ):
            object.__setattr__(self, name, value)  # the way of a frozen class

    @property
    def groups(self) -> int:
        """Number of groups, masked ones included."""
        return len(self.samples)

    def with_widths(self, widths: Sequence[int]) -> Ragged:
        """The same groups with other widths."""
        return ragged(self.samples, self.height, self.width, widths)

    def view(self, flat: Tensor, group: int) -> Tensor:
        """[samples, channels, height, width] of a group of a flat activation, channels-last; shares its memory."""
        return self._group(flat[self.offsets[group] :], group)

    def _group(self, flat: Tensor, group: int) -> Tensor:
        """The `view` of a group of what begins with it."""
        samples, channels = self.samples[group], self.widths[group]
        used = self.rows[group] * channels
        part = flat if len(flat) == used else flat[:used]
        return part.view(samples, self.height, self.width, channels).permute(0, 3, 1, 2)

    def channels(self, vector: Tensor, group: int) -> Tensor:
        """[channels] of a group of a vector of one value a channel; shares its memory."""
        return vector[self.channel_offsets[group] : self.channel_offsets[group + 1]]

    def gates(self, vector: Tensor, group: int) -> Tensor:
        """[samples, channels] of a group of a vector of gates; shares its memory."""
        part = vector[self.gate_offsets[group] : self.gate_offsets[group + 1]]
        return part.view(self.samples[group], self.widths[group])

    def empty(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A flat activation of this shape, its values undefined."""
        return torch.empty(self.numel, dtype=dtype, device=device)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """The flat activation that holds one [samples, channels, height, width] a group; zeros in the gaps.

        Raises:
            InputError: the number of parts or a shape is another one.
        """
        want = [(n, c, self.height, self.width) for n, c in zip(self.samples, self.widths, strict=True)]
        if [tuple(part.shape) for part in parts] != want:
            raise InputError(f"ragged: expected parts of shapes {want}, got {[tuple(part.shape) for part in parts]}")
        pieces: list[Tensor] = []
        for part, begin, end in zip(parts, self.offsets, (*self.offsets, self.numel)[1:], strict=True):
            pieces.append(part.permute(0, 2, 3, 1).reshape(-1))
            pieces.append(part.new_zeros(end - begin - part.numel()))
        return torch.cat(pieces) if pieces else torch.empty(0)

    def unpack(self, flat: Tensor) -> list[Tensor]:
        """The `view` of every group; the gradient of all is one concatenation."""
        sizes = [end - begin for begin, end in pairwise((*self.offsets, self.numel))]
        return [self._group(piece, group) for group, piece in enumerate(torch.split(flat, sizes))]

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _tiles(self) -> dict[tuple[int, int, bool, torch.device], Tensor]:
        return {}

    def table(self, device: torch.device | str) -> Tensor:
        """What kernels know of the groups: int64 [groups, TABLE_COLUMNS] on the device, copied there once.

        Columns: SAMPLES, WIDTH, ROWS (0 for a masked group), OFFSET, CHANNEL_OFFSET, GATE_OFFSET.
        """
        device = torch.device(device)
        if device not in self._tables:
            rows = [rows if width else 0 for rows, width in zip(self.rows, self.widths, strict=True)]
            columns = [self.samples, self.widths, rows, self.offsets, self.channel_offsets[:-1], self.gate_offsets[:-1]]
            self._tables[device] = torch.tensor(columns, dtype=torch.int64).t().contiguous().to(device)
        return self._tables[device]

    def row_tiles(self, block_rows: int, *, per_sample: bool = False) -> tuple[int, ...]:
        """Tiles of block_rows rows that cover each group, 0 for a masked one; per_sample: none holds two samples."""
        pixels = self.height * self.width
        tiles = (
            samples * math.ceil(pixels / block_rows) if per_sample else math.ceil(samples * pixels / block_rows)
            for samples in self.samples
        )
        return tuple(count if width else 0 for count, width in zip(tiles, self.widths, strict=True))

    def tiles(
        self, block_rows: int, block_channels: int, device: torch.device | str, *, per_sample: bool = False
    ) -> Tensor:
        """The launch grid over the live groups: int32 [tiles, 3] of (GROUP, ROW_TILE, CHANNEL_TILE), copied there once.

        Tiles of block_rows x block_channels, the channel tile fastest, so that neighbours read the same rows. The rows
        are tiled as `row_tiles` says.
        """
        device = torch.device(device)
        key = (block_rows, block_channels, per_sample, device)
        if key not in self._tiles:
            live = np.array(self.live, dtype=np.int64)
            across = -(-np.array(self.widths, dtype=np.int64)[live] // block_channels)
            counts = across * np.array(self.row_tiles(block_rows, per_sample=per_sample), dtype=np.int64)[live]
            inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            row_tile, channel_tile = np.divmod(inside, np.repeat(across, counts))
            grid = np.stack([np.repeat(live, counts), row_tile, channel_tile], axis=1).astype(np.int32)
            self._tiles[key] = torch.from_numpy(grid).to(device)
        return self._tiles[key]


# Some hundred shapes live at a time: those of the layers of a few batches.
@lru_cache(maxsize=512)
def _interned(samples: tuple[int, ...], height: int, width: int, widths: tuple[int, ...]) -> Ragged:
    return Ragged(samples, height, width, widths)


def ragged(samples: Sequence[int], height: int, width: int, widths: Sequence[int]) -> Ragged:
    """The `Ragged` of this shape, the same object as the last time, with the tables that it has on devices.

    Raises:
        InputError: as `Ragged`.
    """
    return _interned(tuple(samples), height, width, tuple(widths))
