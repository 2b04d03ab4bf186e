"""The idx files of MNIST and Fashion-MNIST, plain or gzipped.

The format: two zero bytes, a type code (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
32-bit number, then the data.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError

Bytes = npt.NDArray[np.uint8]


def find_file(folder: Path, part: str, kind: str) -> Path | None:
    """The file of a part (`train`, `t10k`) and kind (`images`, `labels`), under one of the names in use, or None."""
    dimensions = 3 if kind == "images" else 1
    for separator in ("-", "."):
        for suffix in (".gz", ""):
            path = folder / f"{part}-{kind}{separator}idx{dimensions}-ubyte{suffix}"
            if os.path.isfile(path):
                return path
    return None


def has_idx_files(folder: Path) -> bool:
    """Whether any of the four files lies in `folder`."""
    return any(find_file(folder, part, kind) for part in ("train", "t10k") for kind in ("images", "labels"))


def has_part(folder: Path, part: str) -> bool:
    """Whether either file of a part lies in `folder`."""
    return any(find_file(folder, part, kind) for kind in ("images", "labels"))


def read_part(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Reads the images and labels of one part.

    Args:
        folder: where the files lie.
        part: `train` or `t10k`.

    Returns:
        Images uint8 [n, height, width] and labels uint8 [n].

    Raises:
        InputError: a file is missing, truncated, too long or not an idx file, or the two do not fit together.
    """
    files = {kind: find_file(folder, part, kind) for kind in ("images", "labels")}
    for kind, path in files.items():
        if path is None:
            name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
            raise InputError(f"data folder {folder}: expected {name} or {name}.gz, found neither.")
    images = read_idx(cast(Path, files["images"]), num_dimensions=3)
    labels = read_idx(cast(Path, files["labels"]), num_dimensions=1)
    if len(images) != len(labels):
        raise InputError(f"{files['images']} holds {len(images)} images, but {files['labels']} {len(labels)} labels.")
    return images, labels


def read_idx(path: Path, num_dimensions: int) -> Bytes:
    """Reads one idx file of unsigned bytes.

    Raises:
        InputError: the file cannot be read, is truncated, too long, or no such file; the message names it.
    """
    try:
        with cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else open(path, "rb")) as file:
            return _read(file, path, num_dimensions)
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: the file is truncated or damaged ({error}).") from error
    except OSError as error:  # BadGzipFile is one
        raise InputError(f"{path}: cannot be read ({error}).") from error


def _read(file: IO[bytes], path: Path, num_dimensions: int) -> Bytes:
    header_size = 4 + 4 * num_dimensions
    header = file.read(header_size)
    if len(header) < header_size:
        raise InputError(f"{path}: the file is truncated ({len(header)} bytes, the header alone has {header_size}).")
    if header[:4] != bytes((0, 0, 8, num_dimensions)):
        raise InputError(
            f"{path}: expected an idx file of unsigned bytes with {num_dimensions} dimensions "
            f"(first bytes 0000080{num_dimensions}), got {header[:4].hex()}."
        )
    shape: tuple[int, ...] = struct.unpack(f">{num_dimensions}I", header[4:])
    size = int(np.prod([int(length) for length in shape], dtype=object))
    if size == 0:
        raise InputError(f"{path}: the header says {' x '.join(map(str, shape))}: there is nothing in it.")
    data = file.read()
    if len(data) != size:
        what = "is truncated" if len(data) < size else "has trailing bytes"
        raise InputError(f"{path}: the file {what}: the header promises {size} bytes, {len(data)} follow.")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
