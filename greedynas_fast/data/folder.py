"""Folders of images, one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.files import Stores
from greedynas_fast.data.images import SUFFIXES, BadFileError, BadFiles, printable
from greedynas_fast.data.splits import Labels, Positions
from greedynas_fast.errors import InputError


@dataclass(frozen=True)
class ImageFiles:
    """The image files of one part, classes one after the other, files of a class in the order of their names.

    Attributes:
        root: the folder above the class folders.
        names: path of each file below `root`, bytes [n] (one array, so that worker processes share its memory).
        labels: class of each file, int64 [n].
        class_names: names of the class folders, in the order of the labels.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of files."""
        return len(self.names)

    def name(self, index: int) -> str:
        """The path of one file."""
        return printable(self._path(index))

    def read(self, index: int) -> bytes:
        """The content of one file.

        Raises:
            BadFileError: it cannot be read.
        """
        try:
            with open(self._path(index), "rb") as file:
                return file.read()
        except OSError as error:
            raise BadFileError(f"it cannot be read ({error.strerror})") from error

    def keep(self, indices: Positions) -> ImageFiles:
        """The files at `indices`, int64 [m]."""
        return ImageFiles(self.root, self.names[indices], self.labels[indices], self.class_names)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(bytes(self.names[index])))


def open_parts(root: Path, bad_files: BadFiles) -> Stores:
    """Finds the images of a data folder with train/ and perhaps val/, or with the class folders themselves.

    Raises:
        InputError: see `scan`.
    """
    if not os.path.isdir(root / "train"):
        return Stores(scan(root, bad_files), None, divided=False)
    train = scan(root / "train", bad_files)
    has_val = os.path.isdir(root / "val")
    return Stores(train, scan(root / "val", bad_files, train.class_names) if has_val else None, divided=True)


def scan(root: Path, bad_files: BadFiles, class_names: tuple[str, ...] | None = None) -> ImageFiles:
    """Finds the images in `root/<class>/`, sub-folders of a class included; hidden files are passed over.

    Args:
        root: the folder above the class folders.
        bad_files: is told about files whose names do not end like an image's.
        class_names: the classes there may be; None takes the folders there are.

    Raises:
        InputError: a folder cannot be read, there are fewer than two classes, a class has no image or is not known.
    """
    found = tuple(sorted(entry.name for entry in entries(root) if entry.is_dir()))
    if not found:
        raise InputError(f"data folder {root}: expected one sub-folder a class, found none.")
    if class_names is None:
        if len(found) == 1:
            raise InputError(f"data folder {root}: expected at least two class folders, found only {found[0]!r}.")
        class_names = found
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise InputError(f"data folder {root}: the class {unknown[0]!r} does not occur among the training images.")
    names: list[bytes] = []
    labels: list[int] = []
    for name in found:
        files = [os.fsencode(file) for file in _image_files(root, name, bad_files)]
        if not files:
            raise InputError(f"class folder {root / name}: no images in it ({_suffix_list()}).")
        names.extend(files)
        labels.extend([class_names.index(name)] * len(files))
    return ImageFiles(root, np.array(names, dtype=np.bytes_), np.array(labels, dtype=np.int64), class_names)


def _image_files(root: Path, below: str, bad_files: BadFiles) -> Iterator[str]:
    """Image files in the folder `root/below`, as texts below `root`: a Path for each of a million files takes long."""
    for entry in entries(root / below):
        name = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _image_files(root, name, bad_files)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield name
        else:
            bad_files.note(os.path.join(root, name), f"its name does not end like an image's ({_suffix_list()})")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"folder {folder}: cannot be read ({error.strerror}).") from error


def _suffix_list() -> str:
    return " ".join(sorted(SUFFIXES))
