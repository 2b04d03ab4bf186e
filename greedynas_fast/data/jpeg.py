"""Plain JPEG files: what they are, without decoding them, and torchvision's decoder for them.

Decoders agree about plain files only. What is rare (turned by EXIF, CMYK, damaged, not JPEG at all) goes to Pillow,
so this parser answers "no" whenever it is in doubt.
JPEG: ITU-T T.81, Annex B; EXIF orientation: CIPA DC-008 4.6.4.
"""

from __future__ import annotations

import functools
import importlib
import re
import struct
from collections.abc import Callable

import torch
from torch import Tensor

_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA
_HUFFMAN, _EXIF, _ADOBE = 0xC4, 0xE1, 0xEE
# Frames: baseline, extended and progressive, Huffman-coded. Others (lossless, arithmetic, hierarchical) are rare.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
# Quantisation, restart interval, comment, application data.
_PASSED_OVER = frozenset({_HUFFMAN, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# In the compressed data of a scan: anything but a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ORIENTATION = 0x0112
_RGB = 3  # torchvision's ImageReadMode
# Pillow warns about larger images, and refuses still larger ones: that is left to it.
_MAX_PIXELS = 1 << 26


def plain_size(data: bytes) -> tuple[int, int] | None:
    """The height and width of a complete, upright JPEG with 8-bit grey or YCbCr pixels; None of any other file.

    Damage within the compressed pixels is not seen here, unless it looks like a marker: Pillow stumbles over one, and
    DALI, which does not read to the end, would not.
    """
    if data[:2] != _START:
        return None
    try:
        return _walk(data)
    except (struct.error, IndexError):  # the file ends within a segment
        return None


@functools.cache
def torchvision_decoder() -> Callable[[Tensor, int, bool], Tensor] | None:
    """`decode_jpeg` of the installed torchvision; None if it has none.

    It gives Pillow's pixels, as both use libjpeg-turbo, as a tensor, which saves a copy. Since torchvision 0.29 the
    function around it is deprecated, and it will go.
    """
    importlib.import_module("torchvision.io")  # registers it
    decoder: Callable[[Tensor, int, bool], Tensor] | None = getattr(torch.ops.image, "decode_jpeg", None)
    return decoder


def decode_plain(data: bytes) -> Tensor | None:
    """The pixels, uint8 [3, H, W], of a plain file; None of any other, of a damaged one, and without a decoder."""
    if plain_size(data) is None or (decoder := torchvision_decoder()) is None:
        return None
    try:
        return decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)
    except RuntimeError:
        return None


def _walk(data: bytes) -> tuple[int, int] | None:
    """Goes from segment to segment up to the end marker."""
    place, size, scanned = 2, None, False
    while True:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _END:
            return size if scanned else None
        (length,) = struct.unpack_from(">H", data, place + 2)
        body = place + 4
        place += 2 + length
        if marker == _SCAN:
            found = _MARKER.search(data, place)
            if found is None:
                return None
            place, scanned = found.start(), True
        elif marker in _FRAMES and size is None:
            size = _frame_size(data, body)
            if size is None:
                return None
        elif marker not in _PASSED_OVER or not _is_harmless(marker, data[body:place]):
            return None


def _is_harmless(marker: int, segment: bytes) -> bool:
    """Whether a segment says nothing about the order of the pixels or their colours."""
    if marker == _EXIF:
        return _is_upright(segment)
    return marker != _ADOBE or segment[:5] != b"Adobe" or segment[11] == 1  # YCbCr


def _frame_size(data: bytes, body: int) -> tuple[int, int] | None:
    precision, height, width, components = struct.unpack_from(">BHHB", data, body)
    # Without other hints decoders take these component names for RGB.
    names = data[body + 6 : body + 6 + 3 * components : 3]
    usable = precision == 8 and components in (1, 3) and names != b"RGB" and 0 < height * width <= _MAX_PIXELS
    return (height, width) if usable else None


def _is_upright(segment: bytes) -> bool:
    """Whether an APP1 segment leaves the image as it is stored."""
    if segment[:6] != b"Exif\0\0":
        return b"Orientation" not in segment  # XMP may hold it too
    tiff = segment[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return False
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == _ORIENTATION:
            (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
            return (kind, number, value) == (3, 1, 1)
    return True
