"""Tile sizes of the op-masked pointwise convolution.

One entry for each kernel, kind of arithmetic and number of rows. They were chosen without a GPU, from what the compiler
makes of them for sm_80 and sm_90: no spills (`tests/kernels` holds them to that), at least eight warps a
multiprocessor, 16-byte loads, few tiles across a layer. What `masked_pointwise_tuning.tune` has found on a card is used
there instead: a JSON file a card and version of Triton, in GREEDYNAS_CACHE_DIR or ~/.cache/greedynas_fast.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

Kernel = Literal["forward", "data", "weight"]
Kind = Literal["half", "tf32", "float32"]

MANY_ROWS = 1024
"""Rows of a group from which tall tiles leave enough of them for all multiprocessors of a large GPU, if eight groups
run together. Not of a launch: the bits of a group must not depend on the others."""
SMALLEST = 16
"""Least size that a product of tensor cores takes on any axis."""


@dataclass(frozen=True)
class Tile:
    """Rows, channels in and channels out that a program handles at a time, warps, and loads kept in flight."""

    rows: int
    channels_in: int
    channels_out: int
    warps: int
    stages: int

    def fit(self, width_in: int, width_out: int) -> Tile:
        """The tile, no wider than the widest group asks for."""
        return replace(
            self, channels_in=_fit(self.channels_in, width_in), channels_out=_fit(self.channels_out, width_out)
        )


# float32 without tf32 runs on plain multiply-adds: small tiles, or the accumulators alone fill the registers.
# Its weight gradient loads nothing ahead: with loads in flight sm_80 spills.
# The data gradient has the prologue's gradient behind its product: eight warps share those values.
TABLE: dict[tuple[Kernel, Kind], Tile] = {
    # rows, in, out, warps, stages
    ("forward", "half"): Tile(128, 32, 64, 8, 3),
    ("forward", "tf32"): Tile(64, 32, 64, 4, 3),
    ("forward", "float32"): Tile(64, 32, 64, 8, 3),
    ("data", "half"): Tile(128, 64, 32, 8, 3),
    ("data", "tf32"): Tile(64, 64, 32, 8, 3),
    ("data", "float32"): Tile(64, 64, 32, 8, 3),
    ("weight", "half"): Tile(32, 64, 64, 8, 3),
    ("weight", "tf32"): Tile(32, 64, 64, 8, 3),
    ("weight", "float32"): Tile(32, 64, 64, 4, 1),
}
# For fewer than MANY_ROWS rows, where that is another one.
SHORT: dict[tuple[Kernel, Kind], Tile] = {
    ("forward", "half"): Tile(64, 64, 64, 4, 3),
    ("data", "half"): Tile(64, 64, 64, 8, 3),
}


def choose(
    kernel: Kernel,
    dtype: torch.dtype,
    allow_tf32: bool,
    rows: int,
    width_in: int,
    width_out: int,
    card: str | None = None,
) -> Tile:
    """The tile for a launch.

    Args:
        kernel: which product.
        dtype: of x.
        allow_tf32: whether float32 may use tensor cores.
        rows: of the largest live group.
        width_in: channels in of the widest group.
        width_out: channels out of the widest group.
        card: name of the GPU; None for the table as it stands.
    """
    kind: Kind = "half" if dtype.itemsize == 2 else "tf32" if allow_tf32 else "float32"
    tile = TABLE[kernel, kind]
    if rows < MANY_ROWS:
        tile = SHORT.get((kernel, kind), tile)
    if card is not None:
        tile = measured(cache_file(card)).get(shape_class(kernel, kind, rows), tile)
    return tile.fit(width_in, width_out)


def shape_class(kernel: Kernel, kind: Kind, rows: int) -> str:
    """The key of a tile that was measured."""
    return f"{kernel}-{kind}-{'many' if rows >= MANY_ROWS else 'few'}-rows"


def cache_file(card: str) -> Path:
    """Where the tiles measured on a card lie, or would lie."""
    folder = os.environ.get("GREEDYNAS_CACHE_DIR") or Path.home() / ".cache" / "greedynas_fast"
    version = importlib.metadata.version("triton")
    return Path(folder) / f"pointwise-{re.sub('[^A-Za-z0-9]+', '-', card)}-triton-{version}.json"


@lru_cache(maxsize=8)
def measured(path: Path) -> dict[str, Tile]:
    """The tiles in a file by their shape class; none if there is no file, or, with a warning, no good one."""
    if not path.exists():
        return {}
    try:
        return {name: Tile(*map(int, numbers)) for name, numbers in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} cannot be used ({error}): tiles are those of the table", stacklevel=2)
        return {}


def _fit(block: int, width: int) -> int:
    return max(SMALLEST, min(block, 1 << max(width - 1, 0).bit_length()))
