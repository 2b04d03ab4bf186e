"""What a decision about one image means to the pipeline: the region to decode, and the part of it to show."""

from __future__ import annotations

import math
from typing import NamedTuple

from greedynas_fast.data.draws import ImageDraw, evaluation_short_side


class Region(NamedTuple):
    """Attributes are (vertical, horizontal).

    Attributes:
        start: top and left of the pixels to decode.
        shape: height and width of the pixels to decode.
        show_from: where the result begins, in pixels of the decoded region.
        show_to: where it ends; to the left of `show_from` if the image is mirrored.
        window: top and left of the result in what is shown, for padding; (0, 0) without.
    """

    start: tuple[int, int]
    shape: tuple[int, int]
    show_from: tuple[float, float]
    show_to: tuple[float, float]
    window: tuple[int, int]


def region(draw: ImageDraw, height: int, width: int, resolution: int, pad: int) -> Region:
    """Places one image.

    Args:
        draw: the decisions.
        height: of the source image.
        width: of the source image.
        resolution: height and width of the result.
        pad: black pixels on each side, where `draw.shift` is set.
    """
    if draw.box is not None:
        top, left, box_height, box_width = draw.box
        # Cut out first, so that resizing sees nothing beyond the box.
        start, shape = (top, left), (box_height, box_width)
        show_from, show_to = (0.0, 0.0), (float(box_height), float(box_width))
    else:
        spans = [
            _centre(length, resized, resolution)
            for length, resized in zip((height, width), _evaluation_size(height, width, resolution), strict=True)
        ]
        start, shape = (spans[0][0], spans[1][0]), (spans[0][1], spans[1][1])
        show_from, show_to = (spans[0][2], spans[1][2]), (spans[0][3], spans[1][3])
    if draw.mirrored:
        show_from, show_to = (show_from[0], show_to[1]), (show_to[0], show_from[1])
    window = (0, 0)
    if draw.shift is not None:
        # Mirroring comes before padding here, and after it in the draw.
        across = 2 * pad - draw.shift[1] if draw.mirrored else draw.shift[1]
        window = draw.shift[0] - pad, across - pad
    return Region(start, shape, show_from, show_to, window)


def _evaluation_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width after the shorter side was brought to its length (rounded down, as torchvision does)."""
    short = evaluation_short_side(resolution)
    return (short, short * width // height) if height <= width else (short * height // width, short)


def _centre(length: int, resized: int, resolution: int) -> tuple[int, int, float, float]:
    """One direction: first pixel to decode, how many, begin and end of the centre in them."""
    scale = length / resized
    begin = round((resized - resolution) / 2) * scale
    end = begin + resolution * scale
    # The filter reaches so many pixels beyond; one more for the decoder's own interpolation of colours.
    margin = math.ceil(max(1.0, scale)) + 1
    first, last = max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
    return first, last - first, begin - first, end - first
