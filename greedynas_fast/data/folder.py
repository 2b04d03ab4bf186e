"""Folders of images, one sub-folder a class: finding the files, checking them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.images import SUFFIXES, BadFileError, BadFiles, decode
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

    def path(self, index: int) -> Path:
        """The path of one file."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def keep(self, indices: Positions) -> ImageFiles:
        """The files at `indices`, int64 [m]."""
        return ImageFiles(self.root, self.names[indices], self.labels[indices], self.class_names)


def scan(root: Path, bad_files: BadFiles, class_names: tuple[str, ...] | None = None) -> ImageFiles:
    """Finds the images in `root/<class>/`, sub-folders of a class included; hidden files are passed over.

    Args:
        root: the folder above the class folders.
        bad_files: is told about files whose names do not end like an image's.
        class_names: the classes there may be; None takes the folders there are.

    Raises:
        InputError: a folder cannot be read, there are fewer than two classes, a class has no image or is not known.
    """
    found = tuple(sorted(entry.name for entry in _entries(root) if entry.is_dir()))
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


def check(files: ImageFiles, bad_files: BadFiles) -> ImageFiles:
    """Decodes every file and returns the good ones.

    Raises:
        InputError: a bad file is not to be skipped, or a class has no good one.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = list(pool.map(lambda index: _reason(files.path(index)), range(len(files))))
    for index, reason in enumerate(reasons):
        if reason is not None:
            bad_files.note(files.path(index), reason)
    good = files.keep(np.flatnonzero([reason is None for reason in reasons]))
    for label in np.setdiff1d(files.labels, good.labels):
        raise InputError(f"class folder {files.root / files.class_names[label]}: no usable image in it.")
    return good


def _reason(path: Path) -> str | None:
    try:
        decode(path, in_channels=3)
    except BadFileError as error:
        return str(error)
    return None


def _image_files(root: Path, below: str, bad_files: BadFiles) -> Iterator[str]:
    """Image files in the folder `root/below`, as texts below `root`: a Path for each of a million files takes long."""
    for entry in _entries(root / below):
        name = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _image_files(root, name, bad_files)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield name
        else:
            bad_files.note(root / name, f"its name does not end like an image's ({_suffix_list()})")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name, without hidden entries."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"folder {folder}: cannot be read ({error.strerror}).") from error


def _suffix_list() -> str:
    return " ".join(sorted(SUFFIXES))
