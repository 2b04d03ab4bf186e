"""What is compiled of the pointwise kernels: each tile of the table, with all that takes registers switched on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kernels_aot import ARCHITECTURES, Build

from greedynas_fast.ops import triton_kernels
from greedynas_fast.ops.masked_pointwise_tiles import SHORT, TABLE, Tile
from greedynas_fast.ops.ragged_reduction import BLOCK, FAN

KINDS = {"half": ("bf16", "ieee"), "tf32": ("fp32", "tf32"), "float32": ("fp32", "ieee")}
_ACTIVATIONS = ("x", "y", "grad", "grad_x")
_INTEGERS = {"tiles": "*i32", "table_in": "*i64", "table_out": "*i64", "layer": "*i64", "jobs": "*i64", "sums": "*i64"}
_SIZES = ("pixels", "partial_stride", "num_channels", "stride", "row_stride", "part_stride")


def types_of(kernel: Any, dtype: str, constants: Mapping[str, Any]) -> dict[str, str]:
    """The types of the arguments by their names."""
    types = {}
    for name in kernel.arg_names:
        if name in _ACTIVATIONS:
            types[name] = f"*{dtype}"
        elif name in _SIZES:
            types[name] = "i32"
        elif name not in constants:
            types[name] = _INTEGERS.get(name, "*fp32")
    return types


def build(
    name: str,
    kernel: Any,
    dtype: str,
    constants: Mapping[str, Any],
    warps: int = 4,
    stages: int = 3,
    always: tuple[int, ...] = ARCHITECTURES,
) -> Build:
    """A build whose workspaces have rows of whole cache lines."""
    types = types_of(kernel, dtype, constants)
    return Build(name, kernel, types, constants, warps, stages, frozenset({"partial_stride", "stride"}), always)


def products() -> Iterator[Build]:
    """The three products on each tile of the table."""
    kernels = triton_kernels.load("pointwise")
    of = {
        "forward": (kernels.forward_kernel, {"ALIGN_BANK": 16}),
        "data": (kernels.data_gradient_kernel, {"ALIGN_BANK": 16, "SUMS": True}),
        "weight": (kernels.weight_gradient_kernel, {}),
    }
    entries = [*TABLE.items(), *SHORT.items()]
    for number, ((which, kind), tile) in enumerate(entries):
        dtype, precision = KINDS[kind]
        kernel, extra = of[which]
        constants = {
            "ALIGN_IN": 8,
            "ALIGN_OUT": 8,
            "NORM": True,
            "ACTIVATION": 2,
            "GATED": True,
            "MOMENTS": True,
            **extra,
        }
        shape = {
            "BLOCK_R": tile.rows,
            "BLOCK_I": tile.channels_in,
            "BLOCK_O": tile.channels_out,
            "PRECISION": precision,
        }
        short = number >= len(TABLE)
        always = (90,) if short or kind == "tf32" else ARCHITECTURES
        name = f"pointwise-{which}-{kind}{'-short' if short else ''}"
        yield build(name, kernel, dtype, constants | shape, tile.warps, tile.stages, always)


def reductions() -> Iterator[Build]:
    """What joins partial results."""
    kernels = triton_kernels.load("reduction")
    shape = {"FAN": FAN, "BLOCK": BLOCK}
    yield build("reduction-sum", kernels.sum_kernel, "fp32", {"PARTS": 2, **shape})
    yield build("reduction-moments", kernels.moments_kernel, "fp32", {"LAST": True, **shape})
    tile: Tile = TABLE["weight", "half"]
    yield build(
        "pointwise-add-weight", triton_kernels.load("pointwise").add_weight_gradient_kernel, "fp32",
        {"BLOCK_O": tile.channels_out, "BLOCK_I": tile.channels_in, "BLOCK": 256},
    )  # fmt: skip


BUILDS = [*products(), *reductions()]
