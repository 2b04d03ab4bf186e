"""What one call of the op-masked pointwise convolution is about, and the tables that its launches read.

Tables are built from shapes on the host, copied to the device once and kept with the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.errors import InputError

from .masked_pointwise_tiles import Tile
from .ragged import Ragged, ragged
from .ragged_reduction import Join, plan

_Value = TypeVar("_Value")
Counts = npt.NDArray[np.int64]

WEIGHT_PROGRAMS = 512
"""Programs that the rows of a weight gradient are shared out to: some four for each multiprocessor of a large GPU. A
constant, so that the order of the additions does not depend on the device."""
SHORTEST_RUN = 512
"""Rows that one of them gets at least: fewer, and writing its result costs more than reading its input."""


ACTIVATIONS = ("identity", "relu", "hard_swish", "silu", "relu6")  # in the order of kernels/activation.py


class Prologue(NamedTuple):
    """What is made of x on load: act(x * scale + shift) * gate; vectors float32."""

    scale: Tensor | None
    shift: Tensor | None
    activation: str
    gate: Tensor | None

    def constants(self) -> dict[str, Any]:
        """The compile-time constants that stand for it."""
        return {
            "NORM": self.scale is not None,
            "ACTIVATION": ACTIVATIONS.index(self.activation),
            "GATED": self.gate is not None,
        }


class OutputGradient(NamedTuple):
    """The gradient of y, and with `moments` what else reaches y through them."""

    grad: Tensor
    y: Tensor | None
    moments: Tensor | None
    grad_moments: Tensor | None

    def pointers(self) -> tuple[Tensor, ...]:
        """All four; `grad` stands in for what is not read."""
        return tuple(self.grad if value is None else value for value in self)


@dataclass(frozen=True)
class Layer:
    """Shapes of x and y, and where the weights of each group begin in the bank.

    x and y have equal samples, height and width.

    Raises:
        InputError: not one offset a group, a group that is masked on one side only, or weights that overlap.
    """

    x: Ragged
    y: Ragged
    weight_offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        if len(self.weight_offsets) != x.groups:
            raise InputError(
                f"masked_pointwise: weight_offsets: expected {x.groups}, one a group, got {len(self.weight_offsets)}"
            )
        for group, (width_in, width_out) in enumerate(zip(x.widths, y.widths, strict=True)):
            if bool(width_in) != bool(width_out):
                raise InputError(
                    f"masked_pointwise: group {group} has {width_in} channels in and {width_out} out: "
                    "a masked group has 0 of both"
                )
        end = 0
        for offset, size in sorted({(self.weight_offsets[g], x.widths[g] * y.widths[g]) for g in x.live}):
            if offset < end:
                raise InputError(
                    f"masked_pointwise: weight_offsets: the weights at {offset} begin before those in front of them "
                    f"end at {end}"
                    if offset >= 0
                    else f"masked_pointwise: weight_offsets: got {offset}"
                )
            end = offset + size

    @property
    def live(self) -> tuple[int, ...]:
        """The groups that take part."""
        return self.x.live

    @cached_property
    def weights_end(self) -> int:
        """Elements that the bank has at least."""
        return max((self.weight_offsets[g] + self.x.widths[g] * self.y.widths[g] for g in self.live), default=0)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass."""
        return sum(self.x.rows[g] * self.x.widths[g] * self.y.widths[g] for g in self.live)

    @cached_property
    def alignment(self) -> tuple[int, int, int]:
        """What divides the channels in, the channels out and the weight offsets of all live groups, at most 16."""
        return (
            math.gcd(16, *(self.x.widths[g] for g in self.live)),
            math.gcd(16, *(self.y.widths[g] for g in self.live)),
            math.gcd(16, *(self.weight_offsets[g] for g in self.live)),
        )

    @cached_property
    def _kept(self) -> dict[Hashable, Any]:
        return {}

    def _keep(self, key: Hashable, build: Callable[[], _Value]) -> _Value:
        if key not in self._kept:
            self._kept[key] = build()
        value: _Value = self._kept[key]
        return value

    def partials(self, tile: Tile, per_sample: bool) -> int:
        """Tiles of rows of all groups: what a kernel writes one partial result for."""
        return sum(self.x.row_tiles(tile.rows, per_sample=per_sample))

    def table(self, tile: Tile, per_sample: bool, device: torch.device) -> Tensor:
        """int64 [groups, 2]: where the weights of a group begin, and its first partial result."""

        def build() -> Tensor:
            tiles = np.array(self.x.row_tiles(tile.rows, per_sample=per_sample), dtype=np.int64)
            columns = np.stack([np.array(self.weight_offsets, dtype=np.int64), np.cumsum(tiles) - tiles], axis=1)
            return torch.from_numpy(columns).to(device)

        return self._keep(("table", tile.rows, per_sample, device), build)

    def _counts(self, tile: Tile, per_sample: bool) -> list[Counts]:
        """Rows behind each partial result, of each group; none of a masked one."""
        pixels = self.x.height * self.x.width
        counts = [np.zeros(0, dtype=np.int64)] * self.x.groups
        for g in self.live:
            run, times = (pixels, self.x.samples[g]) if per_sample else (self.x.rows[g], 1)
            counts[g] = np.tile(_tiles_of(run, tile.rows), times)
        return counts

    def joins(self, of: Ragged, tile: Tile, per_sample: bool, device: torch.device, fan: int) -> tuple[Join, ...]:
        """How partial results become one a group: `of` is x or y, for its channels."""

        def build() -> tuple[Join, ...]:
            return plan(self._counts(tile, per_sample), of.widths, of.channel_offsets[:-1], device, fan)

        return self._keep(("joins", of is self.x, tile.rows, per_sample, device, fan), build)

    def gate_joins(self, tile: Tile, device: torch.device, fan: int) -> tuple[Join, ...]:
        """How partial results become one a sample; tiles hold rows of one sample."""

        def build() -> tuple[Join, ...]:
            x = self.x
            tiles = _tiles_of(x.height * x.width, tile.rows)
            samples = [(g, i) for g in self.live for i in range(x.samples[g])]
            offsets = [x.gate_offsets[g] + i * x.widths[g] for g, i in samples]
            return plan([tiles] * len(samples), [x.widths[g] for g, _ in samples], offsets, device, fan)

        return self._keep(("gate_joins", tile.rows, device, fan), build)

    def weight_jobs(self, tile: Tile, device: torch.device) -> tuple[Tensor, Tensor]:
        """The work of a weight gradient.

        Returns:
            jobs int64 [n, 5]: group, first row, end of the rows, tile of channels out, tile of channels in;
            sums int64 [m, 7]: for each weight tile where its operation's weights begin, channels in and out, tile of
            channels out and in, and its jobs: first and number, those of all groups that share the operation.
        """

        def build() -> tuple[Tensor, Tensor]:
            jobs, sums, end = [], [], 0
            length = self._rows_of_a_run(tile)
            for weights in sorted({self.weight_offsets[g] for g in self.live}):
                groups = [g for g in self.live if self.weight_offsets[g] == weights]
                firsts = [np.arange(0, self.x.rows[g], length) for g in groups]
                runs = np.concatenate(
                    [
                        np.stack([np.full_like(first, g), first, np.minimum(first + length, self.x.rows[g])], axis=1)
                        for g, first in zip(groups, firsts, strict=True)
                    ]
                )
                widths = (self.x.widths[groups[0]], self.y.widths[groups[0]])
                across = (math.ceil(widths[1] / tile.channels_out), math.ceil(widths[0] / tile.channels_in))
                tiles = np.stack(np.divmod(np.arange(math.prod(across)), across[1]), axis=1)
                jobs.append(
                    np.concatenate([np.tile(runs, (len(tiles), 1)), np.repeat(tiles, len(runs), axis=0)], axis=1)
                )
                first = end + len(runs) * np.arange(len(tiles))
                operation = np.tile(np.array([weights, *widths]), (len(tiles), 1))
                number = np.full(len(tiles), len(runs))
                sums.append(np.concatenate([operation, tiles, np.stack([first, number], axis=1)], axis=1))
                end += len(jobs[-1])
            return torch.from_numpy(np.concatenate(jobs)).to(device), torch.from_numpy(np.concatenate(sums)).to(device)

        return self._keep(("weight_jobs", tile, device), build)

    def _rows_of_a_run(self, tile: Tile) -> int:
        work = sum(
            self.x.rows[g]
            * math.ceil(self.x.widths[g] / tile.channels_in)
            * math.ceil(self.y.widths[g] / tile.channels_out)
            for g in self.live
        )
        return tile.rows * math.ceil(max(work / WEIGHT_PROGRAMS, SHORTEST_RUN) / tile.rows)


def _tiles_of(rows: int, block: int) -> Counts:
    """Rows of each of the tiles that cover `rows`."""
    return np.minimum(block, rows - np.arange(0, rows, block))


@lru_cache(maxsize=512)
def _interned(
    samples: tuple[int, ...],
    size: tuple[int, int],
    widths_in: tuple[int, ...],
    widths_out: tuple[int, ...],
    weight_offsets: tuple[int, ...],
) -> Layer:
    return Layer(ragged(samples, *size, widths_in), ragged(samples, *size, widths_out), weight_offsets)


def layer_of(
    samples: Sequence[int],
    size: Sequence[int],
    widths_in: Sequence[int],
    widths_out: Sequence[int],
    weight_offsets: Sequence[int],
) -> Layer:
    """The `Layer` of these shapes, the same object as the last time, with its tables."""
    height, width = size
    return _interned(tuple(samples), (height, width), tuple(widths_in), tuple(widths_out), tuple(weight_offsets))
