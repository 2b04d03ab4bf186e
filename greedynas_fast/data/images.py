"""Decoding single image files, and keeping account of those that cannot be decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from greedynas_fast.data.jpeg import decode_plain
from greedynas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# Pillow's names of the formats. Not all that Pillow knows: for EPS, say, it would start another program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# Modes with 8 bits a channel; others (32 bits, floats) would lose their range without a word.
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
_ORIENTATION = 0x0112  # EXIF tag


_SKIPPED = "Skipped: "


class BadFileError(Exception):
    """A file that is no usable image; the message says why in a few words."""


class BadFiles:
    """Decides about bad files: refuse them, or count them up to a limit.

    Attributes:
        notices: one sentence for each skipped file.
    """

    def __init__(self, policy: Literal["refuse", "skip"], max_files: int, notices: list[str]) -> None:
        """Starts with none.

        Args:
            policy: `refuse` or `skip`.
            max_files: how many may be skipped.
            notices: gets one sentence a file.
        """
        self.notices = notices
        self._policy, self._max_files = policy, max_files
        self._seen: set[str] = set()

    def note(self, name: str, reason: str) -> None:
        """Counts a bad file once, however often it turns up.

        Raises:
            InputError: files are not to be skipped, or there are too many.
        """
        name = printable(name)
        if name in self._seen:
            return
        self._seen.add(name)
        sentence = f"image file {name} cannot be used: {reason}."
        if self._policy == "refuse":
            raise InputError(f"{sentence} Remove it, or set data.on_bad_file to skip.")
        if len(self._seen) > self._max_files:
            raise InputError(f"{sentence} More than data.max_bad_files = {self._max_files} files are bad.")
        self.notices.append(f"{_SKIPPED}{sentence}")


def num_skipped(notices: Iterable[str]) -> int:
    """How many of a data set's notices are of files that `BadFiles` has let pass."""
    return sum(notice.startswith(_SKIPPED) for notice in notices)


def printable(path: str) -> str:
    r"""A path that can be written anywhere: bytes that are no UTF-8, which Linux allows in names, as in \xff."""
    return os.fsencode(path).decode(errors="backslashreplace")


def decode_pixels(data: bytes, name: str, in_channels: int) -> Tensor:
    """What `decode` gives, as uint8 [C, H, W]; of plain JPEG files in colour torchvision decodes the same pixels.

    Raises:
        BadFileError: as `decode`.
    """
    if in_channels == 3 and (pixels := decode_plain(data)) is not None:
        return pixels
    values = torch.from_numpy(np.array(decode(data, name, in_channels)))
    return values.view(*values.shape[:2], in_channels).permute(2, 0, 1)


def decode(data: bytes, name: str, in_channels: int) -> Image:
    """Decodes a whole image to grey (`L`, for 1 channel) or `RGB` (for 3), upright as its EXIF data say.

    Transparency is left out: what is behind a transparent pixel shows. 16-bit grey keeps its upper 8 bits, as 16-bit
    colours do in Pillow.

    Args:
        data: the file's content.
        name: its name, which must end like an image's.
        in_channels: 1 or 3.

    Raises:
        BadFileError: it is truncated, is no image, or its values do not fit into 8 or 16 bits.
    """
    from PIL import Image, UnidentifiedImageError

    suffix = os.path.splitext(name)[1]
    if suffix.lower() not in SUFFIXES:
        raise BadFileError(f"its name does not end like an image's ({suffix or 'no suffix'})")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            upright = _upright(_in_8_bits(image), _orientation(image))
            if upright.mode == "P" and "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return upright.convert("L" if in_channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise BadFileError("it is not an image" if data else "it is empty") from error
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise BadFileError(str(error) or type(error).__name__) from error


def _in_8_bits(image: Image) -> Image:
    """The image with 8 bits a channel; the same one if it has them."""
    from PIL import Image

    if image.mode in _MODES:
        return image
    # Older versions of Pillow open 16-bit grey PNG and PGM in the mode of 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    raise BadFileError(f"expected 8 or 16 bits a channel, got an image of mode {image.mode}")


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) also where the EXIF data are damaged, which many cameras' are."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _upright(image: Image, orientation: int) -> Image:
    """Turns and mirrors the image as an EXIF orientation says."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
