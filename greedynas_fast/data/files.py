"""What every decoder reads from: encoded images with labels, whatever they lie in."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from greedynas_fast.data.images import BadFileError, BadFiles, decode
from greedynas_fast.data.splits import Labels, Positions
from greedynas_fast.errors import InputError


class ImageStore(Protocol):
    """Encoded images in a fixed order; a copy in another process reads the same."""

    @property
    def root(self) -> Path:
        """The folder that the data lie in."""

    @property
    def labels(self) -> Labels:
        """The class of each image, int64 [n]."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the labels."""

    def __len__(self) -> int:
        """The number of images."""

    def name(self, index: int) -> str:
        """Where one image is, for messages and lists; its end tells the format, as in `a.jpg`."""

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            BadFileError: it cannot be read.
        """

    def keep(self, indices: Positions) -> ImageStore:
        """The images at `indices`, int64 [m]."""


class Stores(NamedTuple):
    """What a data folder holds.

    Attributes:
        train: the training images, or all images.
        test: the test part; None if there is none.
        divided: whether the folder tells which images are for training; if not, `train` is all there is, and the test
            part is taken out of it.
    """

    train: ImageStore
    test: ImageStore | None
    divided: bool


def check(store: ImageStore, bad_files: BadFiles) -> ImageStore:
    """Decodes every image and returns the good ones.

    Raises:
        InputError: a bad file is not to be skipped, or a class has no good one.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = list(pool.map(lambda index: _reason(store, index), range(len(store))))
    for index, reason in enumerate(reasons):
        if reason is not None:
            bad_files.note(store.name(index), reason)
    good = store.keep(np.flatnonzero([reason is None for reason in reasons]))
    for label in np.setdiff1d(store.labels, good.labels):
        raise InputError(f"data folder {store.root}: class {store.class_names[label]!r}: no usable image in it.")
    return good


def _reason(store: ImageStore, index: int) -> str | None:
    try:
        decode(store.read(index), store.name(index), in_channels=3)
    except BadFileError as error:
        return str(error)
    return None
