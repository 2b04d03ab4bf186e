"""The drawing of a found network: one row a layer, boxes as wide as the block's inside and as high as its kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import numpy as np
import numpy.typing as npt

from greedynas_fast.spaces import SearchSpace
from greedynas_fast.spaces.specs import (
    BottleneckSpec,
    IdentitySpec,
    InvertedResidualSpec,
    LayerSpec,
    OperationSpec,
    ShuffleUnitSpec,
)
from greedynas_fast.stages.report.charts import legend, number_text

WIDTH, ROW = 960, 30
CENTRE, WIDEST = 345, 270  # of the boxes
COLUMNS = (510, 715, 750)  # left edge of the channels, right edge of the parameters, left edge of the MACs
BAR = 130
HEIGHTS = {1: 12, 3: 14, 5: 19, 7: 24}  # of a box, by kernel size


@dataclass(frozen=True)
class Shape:
    """How an operation is drawn: its colour slot, inside width in channels, kernel sizes and whether it has SE."""

    family: str
    slot: int
    width: int
    kernels: tuple[int, ...]
    se: bool


def shape_of(spec: OperationSpec, layer: LayerSpec) -> Shape:
    """Family, inner width, kernels and SE of an operation at a layer."""
    if isinstance(spec, IdentitySpec):
        return Shape("identity", 0, layer.out_channels, (1,), False)
    if isinstance(spec, InvertedResidualSpec):
        mix = len(spec.kernel_sizes) > 1
        family, slot = ("MixConv", 3) if mix else ("inverted residual", 1)
        return Shape(family, slot, spec.expansion * layer.in_channels, spec.kernel_sizes, spec.se is not None)
    if isinstance(spec, ShuffleUnitSpec):
        kernels = (3, 3, 3) if spec.kernel_size == "x" else (int(spec.kernel_size),)
        return Shape("shuffle unit", 4, layer.out_channels, kernels, spec.se is not None)
    assert isinstance(spec, BottleneckSpec)
    grouped = spec.groups > 1
    family, slot = ("ResNeXt bottleneck", 6) if grouped else ("bottleneck", 2)
    return Shape(family, slot, spec.inner_width(layer.out_channels // 4), (spec.kernel_size,), spec.se is not None)


def draw_network(space: SearchSpace, path: npt.NDArray[np.uint8]) -> str:
    """The network of a path as an HTML figure.

    Args:
        space: the search space.
        path: uint8 [L], checked.

    Returns:
        A legend and an `<svg>`: stem, layers under a heading a stage, head; parameters and MACs of each layer.
    """
    params, macs = space.op_costs()
    chosen = [int(op) for op in path]
    shapes = [shape_of(layer.ops[op], layer) for layer, op in zip(space.layers, chosen, strict=True)]
    layer_macs = [int(macs[i, op]) for i, op in enumerate(chosen)]
    widest, most = max(s.width for s in shapes), max(1, *layer_macs)
    side = _stem_side(space)
    rows = len(shapes) + len({layer.stage for layer in space.layers}) + 3
    body = [_heads(), _wire(rows), _end(space, 1, "stem", side)]
    row, stage = 2, None
    for i, (layer, op, shape) in enumerate(zip(space.layers, chosen, shapes, strict=True)):
        side = -(-side // layer.stride)
        if layer.stage != stage:
            stage = layer.stage
            body.append(_stage(row, f"{side} × {side}, {layer.out_channels} channels"))
            row += 1
        costs = (int(params[i, op]), layer_macs[i])
        body.append(_layer(row, layer, shape, space.ops[i][op], costs, (shape.width / widest, layer_macs[i] / most)))
        row += 1
    body.append(_end(space, row, "head", 1))
    height = rows * ROW
    label = "The found network, layer by layer"
    svg = f'<svg class="net" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return f'<figure>{_legend(shapes)}<div class="scroll">{svg}</div></figure>'


def _legend(shapes: list[Shape]) -> str:
    """The families that occur; shade and height stand for the kernel size."""
    families = sorted({(s.slot, s.family) for s in shapes if s.slot})
    key = legend([(f"box b{slot}", family) for slot, family in families])
    text = "Width: channels inside the block. Height and shade: kernel size. Dashed: identity. SE: squeeze-excite."
    return key + f'<p class="soft">{text}</p>'


def _stem_side(space: SearchSpace) -> int:
    """Height and width of the feature map in front of the first layer."""
    side = -(-space.resolution // space.stem.stride)
    if space.stem.max_pool:
        side = -(-side // 2)
    for block in space.stem.blocks:
        side = -(-side // block.stride)
    return side


def _wire(rows: int) -> str:
    """The line on which the boxes hang."""
    return f'<line class="wire" x1="{CENTRE}" x2="{CENTRE}" y1="{ROW + ROW // 2}" y2="{rows * ROW - ROW // 2}"/>'


def _heads() -> str:
    """Names of the columns."""
    y = ROW / 2 + 4
    names = (
        (26, "layer", ""),
        (CENTRE, "block", " mid"),
        (COLUMNS[0], "channels", ""),
        (COLUMNS[1], "parameters", " end"),
        (COLUMNS[2], "MACs", ""),
    )
    return "".join(_text(x, y, name, f"small strong{side}") for x, name, side in names)


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def _end(space: SearchSpace, row: int, what: str, side: int) -> str:
    """The fixed stem or head."""
    y = row * ROW + ROW / 2
    if what == "stem":
        fixed = f", {len(space.stem.blocks)} fixed" if space.stem.blocks else ""
        text, size = (
            f"conv {space.stem.kernel_size}×{space.stem.kernel_size}{fixed}",
            f"{space.in_channels} → {space.stem.out_channels}",
        )
        size += f" · {side} × {side}"
    else:
        wide = space.head.channels or space.head.in_channels
        text, size = "pool, linear", f"{wide} → {space.num_classes} classes"
    box = f'<rect class="fixed" x="{CENTRE - 55}" y="{y - 10:g}" width="110" height="20" rx="5"/>'
    name = _text(CENTRE, y + 4, text, "small mid")
    return _text(26, y + 4, what, "small") + box + name + _text(COLUMNS[0], y + 4, size, "small")


def _stage(row: int, text: str) -> str:
    """The heading of a stage and a rule above it."""
    y = row * ROW + ROW / 2
    rule = f'<line class="rule" x1="0" x2="{WIDTH}" y1="{y - 8:g}" y2="{y - 8:g}"/>'
    return rule + _text(0, y + 9, text, "stage")


def _layer(
    row: int, layer: LayerSpec, shape: Shape, name: str, costs: tuple[int, int], shares: tuple[float, float]
) -> str:
    """One searched layer: number, name, box, channels and stride, parameters, MACs. `shares`: of the largest."""
    y = row * ROW + ROW / 2
    half = max(14.0, WIDEST * math.sqrt(shares[0])) / 2
    stride = f" · stride {layer.stride}" if layer.stride > 1 else ""
    parts = [
        _text(18, y + 4, str(layer.index + 1), "small end"),
        _text(26, y + 4, name, "label"),
        _box(shape, y, half),
        _text(COLUMNS[0], y + 4, f"{layer.in_channels} → {layer.out_channels}{stride}", "small"),
        _text(COLUMNS[1], y + 4, number_text(costs[0], "count"), "small end"),
        f'<rect class="bar" x="{COLUMNS[2]}" y="{y - 5:g}" width="{BAR * shares[1]:.1f}" height="10" rx="2"/>',
        _text(COLUMNS[2] + BAR * shares[1] + 6, y + 4, number_text(costs[1], "count"), "small"),
    ]
    return "".join(parts)


def _box(shape: Shape, y: float, half: float) -> str:
    """The box; MixConv and the triple shuffle unit show their three kernels side by side."""
    if not shape.slot:
        return f'<rect class="skip" x="{CENTRE - half:.1f}" y="{y - 6:g}" width="{2 * half:.1f}" height="12" rx="5"/>'
    share = 2 * half / len(shape.kernels)
    out = []
    for i, kernel in enumerate(shape.kernels):
        height = HEIGHTS.get(kernel, 24)
        shade = min(2, max(0, (kernel - 3) // 2))
        x = CENTRE - half + i * share
        gap = 1.5 if i + 1 < len(shape.kernels) else 0
        out.append(
            f'<rect class="hue{shape.slot} k{shade}" x="{x:.1f}" y="{y - height / 2:g}" width="{share - gap:.1f}" '
            f'height="{height}" rx="4"/>'
        )
    if shape.se:
        x = CENTRE + half + 2
        out.append(f'<circle class="se" cx="{x:.1f}" cy="{y:g}" r="8"/>{_text(x, y + 3, "SE", "setext mid")}')
    return "".join(out)
