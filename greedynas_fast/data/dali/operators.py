"""Automatic augmentation in DALI's own operators: the images stay where they were decoded.

They are other functions than Pillow's, which `changes` carries out: most results are within two grey values, those of
`Equalize` (OpenCV's formula) within thirty; the outermost pixels are filtered by `Sharpness` too, and mixed with black
by what shears or rotates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.policies import Change

# No policy asks for more changes of an image.
MOST_CHANGES = 2

# Operators; several operations are numbers for the same one.
_NOTHING, _WARP, _BRIGHTNESS, _COLOR, _CONTRAST, _SHARPNESS, _TABLE, _AUTO_CONTRAST, _EQUALIZE = range(9)
_KINDS = {
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), _WARP),
    **dict.fromkeys(("Posterize", "Solarize", "Invert"), _TABLE),
    "Brightness": _BRIGHTNESS,
    "Color": _COLOR,
    "Contrast": _CONTRAST,
    "Sharpness": _SHARPNESS,
    "AutoContrast": _AUTO_CONTRAST,
    "Equalize": _EQUALIZE,
}
_GREY = (0.299, 0.587, 0.114)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13
_SAME = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float32)


class Operation(NamedTuple):
    """One change in the numbers that the graph takes; those that it does not need are neutral.

    Attributes:
        kind: which operator, int32.
        matrix: float32 [2, 3], from a place in the result (x, y) to that in the source; the centre of the first pixel
            is (0.5, 0.5).
        amount: the factor of an enhancement, float32.
        kernel: float32 [3, 3], what a pixel becomes of its neighbourhood.
        threshold: values from here on are inverted, int32.
        mask: bits that stay, uint8.
    """

    kind: int
    matrix: npt.NDArray[np.float32]
    amount: float
    kernel: npt.NDArray[np.float32]
    threshold: int
    mask: int


# Type and number of dimensions of the fields of `Operation` as inputs of the graph.
_INPUTS = {
    "kind": (np.int32, 0),
    "matrix": (np.float32, 2),
    "amount": (np.float32, 0),
    "kernel": (np.float32, 2),
    "threshold": (np.int32, 0),
    "mask": (np.uint8, 0),
}
_NO_CHANGE = Change("Identity", 0.0)


def operation(change: Change, resolution: int) -> Operation:
    """The numbers of a change of an image of `resolution` x `resolution` pixels; none that is known: no operation."""
    name, magnitude = change
    threshold, mask = 256, 255
    if name == "Posterize":
        mask = 255 & -(1 << (8 - int(magnitude)))
    elif name == "Solarize":
        threshold = math.ceil(255 * magnitude)
    elif name == "Invert":
        threshold = 0
    factor = 1 + magnitude
    kernel = (1 - factor) * _SMOOTH + factor * _SAME
    return Operation(_KINDS.get(name, _NOTHING), _matrix(name, magnitude, resolution), factor, kernel, threshold, mask)


def numbers(images: Iterable[Sequence[Change]], resolution: int) -> dict[str, npt.NDArray[np.generic]]:
    """What the inputs of `declare` get, for the changes of each image of a batch."""
    padded = [[*changes, *([_NO_CHANGE] * (MOST_CHANGES - len(changes)))] for changes in images]
    found: dict[str, npt.NDArray[np.generic]] = {}
    for place, changes in enumerate(zip(*padded, strict=True)):
        columns = zip(*(operation(change, resolution) for change in changes), strict=True)
        for (name, (kind, _)), values in zip(_INPUTS.items(), columns, strict=True):
            found[f"{name}_{place}"] = np.array(values, dtype=kind)
    return found


def declare() -> list[Operation]:
    """Inputs of the graph that is being defined, for each change of an image."""
    from nvidia.dali import fn, types

    kinds = {np.int32: types.INT32, np.float32: types.FLOAT, np.uint8: types.UINT8}
    return [
        Operation(
            **{
                name: fn.external_source(name=f"{name}_{place}", dtype=kinds[kind], ndim=rank)
                for name, (kind, rank) in _INPUTS.items()
            }
        )
        for place in range(MOST_CHANGES)
    ]


def carry_out(pixels: Any, change: Any, in_channels: int, on_gpu: bool) -> Any:
    """One change of each image, in a graph that is being defined with conditional execution.

    Args:
        pixels: uint8 [H, W, C].
        change: one of `declare`.
        in_channels: C.
        on_gpu: whether the pixels are on a GPU, where numbers that are no arguments have to be as well.
    """
    kind, kernel, threshold, mask = change.kind, change.kernel, change.threshold, change.mask
    factor = change.amount
    if on_gpu:
        kernel, threshold, mask, factor = kernel.gpu(), threshold.gpu(), mask.gpu(), factor.gpu()
    # DALI turns these into splits of the batch; each branch sees its images alone.
    if kind == _NOTHING:
        changed = pixels
    elif kind == _WARP:
        changed = _warped(pixels, change.matrix)
    elif kind == _BRIGHTNESS:
        changed = _brightened(pixels, change.amount)
    elif kind == _COLOR:
        changed = _coloured(pixels, change.amount, in_channels)
    elif kind == _CONTRAST:
        changed = _contrasted(pixels, factor, in_channels)
    elif kind == _SHARPNESS:
        changed = _operator("filter")(pixels, kernel)
    elif kind == _TABLE:
        changed = _from_table(pixels, threshold, mask)
    elif kind == _AUTO_CONTRAST:
        changed = _auto_contrasted(pixels)
    else:
        changed = _operator("equalize")(pixels)
    return changed


def _matrix(name: str, magnitude: float, resolution: int) -> npt.NDArray[np.float32]:
    matrix = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
    if name == "ShearX":
        matrix[0, 1] = magnitude
    elif name == "ShearY":
        matrix[1, 0] = magnitude
    elif name == "TranslateX":
        matrix[0, 2] = -int(magnitude)
    elif name == "TranslateY":
        matrix[1, 2] = -int(magnitude)
    elif name == "Rotate":
        angle, centre = math.radians(magnitude), resolution / 2
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix[:, :2] = turn
        matrix[:, 2] = centre - turn.sum(1) * centre
    return matrix


def _operator(name: str) -> Any:
    """An operator that was among DALI's experimental ones first."""
    from nvidia.dali import fn

    return getattr(fn, name, None) or getattr(fn.experimental, name)


def _warped(pixels: Any, matrix: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.warp_affine(pixels, matrix=matrix, inverse_map=True, fill_value=0, interp_type=types.INTERP_LINEAR)


def _brightened(pixels: Any, factor: Any) -> Any:
    from nvidia.dali import fn

    return fn.brightness(pixels, brightness=factor)


def _coloured(pixels: Any, factor: Any, in_channels: int) -> Any:
    from nvidia.dali import fn

    # There is no colour to add to grey.
    return pixels if in_channels == 1 else fn.saturation(pixels, saturation=factor)


def _contrasted(pixels: Any, factor: Any, in_channels: int) -> Any:
    """Away from the mean grey value, or towards it."""
    from nvidia.dali import fn, types

    grey = fn.reductions.mean(pixels, axis_names="HW", keep_dims=True)  # [1, 1, C]
    if in_channels == 3:
        weights = types.Constant(np.array(_GREY, dtype=np.float32))
        grey = fn.reductions.sum(grey * weights, axis_names="C", keep_dims=True)
    return fn.cast_like(grey + (pixels - grey) * factor, pixels)


def _from_table(pixels: Any, threshold: Any, mask: Any) -> Any:
    from nvidia.dali import types

    all_bits = types.Constant(255, dtype=types.UINT8)
    return (pixels ^ ((pixels >= threshold) * all_bits)) & mask


def _auto_contrasted(pixels: Any) -> Any:
    """Each channel stretched to 0..255; one that has a single value stays."""
    from nvidia.dali import fn, types

    low = fn.reductions.min(pixels, axis_names="HW", keep_dims=True)
    span = fn.reductions.max(pixels, axis_names="HW", keep_dims=True) - low
    flat = span == 0
    scale = 255.0 / (span + flat * types.Constant(255, dtype=types.UINT8))
    return fn.cast_like((pixels - low * (span > 0)) * scale, pixels)
