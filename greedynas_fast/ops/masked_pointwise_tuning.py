"""Measures tiles of the op-masked pointwise convolution on a card, and keeps the fastest on disk.

`python -c "from greedynas_fast.ops.masked_pointwise_tuning import tune; tune()"`; later processes use what it found.
Other tiles add up in another order: results change within rounding, and stay the same bits from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from greedynas_fast.errors import InputError

from . import masked_pointwise_triton as launch
from . import triton_kernels
from .masked_pointwise_layer import Layer, OutputGradient, Prologue
from .masked_pointwise_tiles import SHORT, TABLE, Kernel, Kind, Tile, cache_file, measured, shape_class
from .ragged import ragged

Measure = Callable[[Kernel, Kind, Layer, Tile], float]
"""Milliseconds of a launch."""

KERNELS: tuple[Kernel, ...] = ("forward", "data", "weight")
# Eight paths at a layer of MB-SE: samples of each, height and width, narrow and wide side, for many and for few rows.
LAYERS = ((16, 56, 40, 240), (4, 7, 192, 1152))
# Each takes a second to compile, for each kernel and number of rows.
CANDIDATES = tuple(
    Tile(rows, channels_in, channels_out, warps, 3)
    for rows in (32, 64, 128)
    for channels_in, channels_out in ((32, 64), (64, 32), (64, 64))
    for warps in (4, 8)
)


def tune(
    kinds: Sequence[Kind] = ("half",),
    *,
    candidates: Sequence[Tile] = CANDIDATES,
    measure: Measure | None = None,
    path: Path | None = None,
) -> dict[str, Tile]:
    """Find the fastest tile for each kernel, kind of arithmetic and number of rows, and write them to disk.

    Args:
        kinds: kinds of arithmetic to measure; what the file says of others is kept.
        candidates: tiles to try beside those of the table.
        measure: how long a launch takes, or infinity where the tile does not fit; None for torch's current GPU.
        path: the file; None for `cache_file` of torch's current GPU.

    Returns:
        Tiles by shape class, as written.

    Raises:
        InputError: no GPU, or no Triton.
    """
    if (measure is None or path is None) and not (torch.cuda.is_available() and triton_kernels.available()):
        raise InputError("tune: expected a GPU and Triton to measure with, and there is none of one of them")
    path = path or cache_file(torch.cuda.get_device_name())
    found = dict(measured(path))
    for samples, size, narrow, wide in LAYERS:
        inner, outer = (ragged([samples] * 8, size, size, [width] * 8) for width in (wide, narrow))
        layer = Layer(inner, outer, tuple(narrow * wide * group for group in range(8)))
        for kind in kinds:
            for kernel in KERNELS:
                table = [entries[kernel, kind] for entries in (TABLE, SHORT) if (kernel, kind) in entries]
                times = {tile: (measure or _on_card)(kernel, kind, layer, tile) for tile in (*table, *candidates)}
                found[shape_class(kernel, kind, max(inner.rows))] = min(times, key=lambda tile: times[tile])
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    numbers = {name: [t.rows, t.channels_in, t.channels_out, t.warps, t.stages] for name, t in found.items()}
    written.write_text(json.dumps(numbers, indent=1))
    os.replace(written, path)
    measured.cache_clear()
    return found


def _on_card(kernel: Kernel, kind: Kind, layer: Layer, tile: Tile) -> float:
    """A projection with norm, activation, gate and moments."""
    import triton.testing
    from triton.runtime.errors import OutOfResources

    device, tf32 = torch.device("cuda"), kind == "tf32"
    dtype = torch.bfloat16 if kind == "half" else torch.float32
    x, grad, y = (torch.randn(shape.numel, dtype=dtype, device=device) for shape in (layer.x, layer.y, layer.y))
    bank = torch.randn(layer.weights_end, device=device)
    scale, shift = torch.randn(2, layer.x.channel_offsets[-1], device=device)
    prologue = Prologue(scale, shift, "hard_swish", torch.rand(layer.x.gate_offsets[-1], device=device))
    moments = torch.rand(2, layer.y.channel_offsets[-1], device=device)
    of_y = OutputGradient(grad, y, moments, moments)
    calls: dict[Kernel, Callable[[], object]] = {
        "forward": lambda: launch.forward(x, bank, layer, prologue, True, tf32, tile),
        "data": lambda: launch.data_gradient(of_y, x, bank, layer, prologue, True, tf32, tile),
        "weight": lambda: launch.add_weight_gradient(bank, of_y, x, layer, prologue, tf32, tile),
    }
    try:
        return float(triton.testing.do_bench(calls[kernel], warmup=5, rep=20))
    except OutOfResources:  # more shared memory than the card has
        return float("inf")
