"""Decoding single image files, and keeping account of those that cannot be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from greedynas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
# Modes with 8 bits a channel; others (16 bits, floats) would lose their range without a word.
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})


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
        self._seen: set[Path] = set()

    def note(self, path: Path, reason: str) -> None:
        """Counts a bad file once, however often it turns up.

        Raises:
            InputError: files are not to be skipped, or there are too many.
        """
        if path in self._seen:
            return
        self._seen.add(path)
        sentence = f"image file {path} cannot be used: {reason}."
        if self._policy == "refuse":
            raise InputError(f"{sentence} Remove it, or set data.on_bad_file to skip.")
        if len(self._seen) > self._max_files:
            raise InputError(f"{sentence} More than data.max_bad_files = {self._max_files} files are bad.")
        self.notices.append(f"Skipped: {sentence}")


def decode(path: Path, in_channels: int) -> Image:
    """Decodes a whole image file to grey (`L`, for 1 channel) or `RGB` (for 3).

    Raises:
        BadFileError: the file cannot be read, is truncated, is no image, or has more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() not in SUFFIXES:
        raise BadFileError(f"its name does not end like an image's ({path.suffix or 'no suffix'})")
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in _MODES:
                raise BadFileError(f"expected 8 bits a channel, got an image of mode {image.mode}")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("L" if in_channels == 1 else "RGB")
            return image.convert("L" if in_channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise BadFileError("it is not an image" if path.stat().st_size else "it is empty") from error
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise BadFileError(str(error) or type(error).__name__) from error
