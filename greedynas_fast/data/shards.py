"""Shards in the form of webdataset: tar files in which an image and its label lie side by side.

A sample is the files of one shard whose paths are equal up to the first dot of the file name (its key): one image,
and `.cls` (the label as a text) or `.json` (an object with the number `label`). Other files are passed over.
The form: https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.files import Stores
from greedynas_fast.data.folder import entries
from greedynas_fast.data.images import SUFFIXES, BadFileError, BadFiles, printable
from greedynas_fast.data.splits import Labels, Positions
from greedynas_fast.data.tar import DamagedTarError, Member, members
from greedynas_fast.errors import InputError

_LABELS = frozenset({".cls", ".json"})
_EXTENSIONS = SUFFIXES | _LABELS
_CLASS_LISTS = ("classes.txt", "classnames.txt")
_PART = re.compile(r"(?<![a-z])(train|val)", re.IGNORECASE)


@dataclass(frozen=True)
class ShardFiles:
    """The images of one part, shard after shard, in the order in which they are stored.

    Attributes:
        root: the data folder.
        shards: paths of the tar files below `root`.
        shard_of: index of the shard of each image, int32 [n].
        members: path of each image in its shard, bytes [n].
        offsets: where its content begins, in bytes, int64 [n].
        sizes: of its content in bytes, int64 [n].
        labels: class of each image, int64 [n].
        class_names: in the order of the labels.
    """

    root: Path
    shards: tuple[str, ...]
    shard_of: npt.NDArray[np.int32]
    members: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def name(self, index: int) -> str:
        """The path of the shard and the image's path in it."""
        return printable(os.path.join(self._shard(index), os.fsdecode(bytes(self.members[index]))))

    def read(self, index: int) -> bytes:
        """One image as it is stored.

        Raises:
            BadFileError: it cannot be read.
        """
        # Opened anew for each image, as image files are: nothing to share among processes or to run out of.
        try:
            with open(self._shard(index), "rb", buffering=0) as file:
                data = os.pread(file.fileno(), int(self.sizes[index]), int(self.offsets[index]))
        except OSError as error:
            raise BadFileError(f"it cannot be read ({error.strerror})") from error
        if len(data) < self.sizes[index]:
            raise BadFileError("the tar file is truncated")
        return data

    def keep(self, indices: Positions) -> ShardFiles:
        """The images at `indices`, int64 [m]."""
        arrays = ("shard_of", "members", "offsets", "sizes", "labels")
        return replace(self, **{name: getattr(self, name)[indices] for name in arrays})

    def _shard(self, index: int) -> str:
        return os.path.join(self.root, self.shards[self.shard_of[index]])


def has_shards(root: Path) -> bool:
    """Whether the data are shards; class folders beside them make them a folder of images."""
    where = root / "train" if os.path.isdir(root / "train") else root
    if not _tar_files(where, ""):
        return False
    return not any(entry.is_dir() and entry.name != "val" for entry in entries(where))


def open_parts(root: Path, bad_files: BadFiles) -> Stores:
    """Finds and indexes the shards of a data folder.

    They lie in train/ and val/, or in the folder itself, where "train" or "val" in their names tells the parts apart.

    Args:
        root: the data folder; `classes.txt` or `classnames.txt` in it may name the classes, one a line.
        bad_files: is told about damaged shards and samples without an image or a label.

    Raises:
        InputError: there are no shards, a label is not among the classes, or there are fewer than two classes.
    """
    parts = _by_part(root)
    train = _index(root, parts.get("train") or parts[""], bad_files)
    names = _class_names(root)
    values = np.unique(train.labels) if names is None else np.arange(len(names))
    if len(values) < 2:
        raise InputError(f"data folder {root}: expected at least two classes, found {len(values)}.")
    names = names or tuple(str(value) for value in values)
    train = _with_classes(train, values, names)
    empty = np.setdiff1d(np.arange(len(names)), train.labels)
    if len(empty):
        raise InputError(f"data folder {root}: class {names[empty[0]]!r} is listed, but has no training image.")
    test = _with_classes(_index(root, parts["val"], bad_files), values, names) if "val" in parts else None
    return Stores(train, test, divided="" not in parts)


def _by_part(root: Path) -> dict[str, list[str]]:
    """Tar files below `root` for `train` and perhaps `val`, or all of them for the empty text: not divided."""
    if os.path.isdir(root / "train"):
        parts = {part: _tar_files(root, part) for part in ("train", "val") if os.path.isdir(root / part)}
    else:
        parts = {}
        for name in _tar_files(root, ""):
            found = _PART.search(name)
            parts.setdefault(found[1].lower() if found else "", []).append(name)
    if not any(parts.values()):
        raise InputError(f"data folder {root}: expected tar files in it or in train/ and val/, found none.")
    for part, names in parts.items():
        if not names:
            raise InputError(f"data folder {root / part}: expected tar files, found none.")
    if "" in parts and len(parts) > 1:
        raise InputError(
            f'data folder {root}: expected "train" or "val" in the name of every tar file, or of none, got '
            f"{parts[''][0]!r}."
        )
    if list(parts) == ["val"]:
        raise InputError(f"data folder {root}: there are validation shards, but no training shards.")
    return parts


def _tar_files(root: Path, below: str) -> list[str]:
    """Paths below `root` of the tar files in the folder `root/below`, sorted."""
    names = [entry.name for entry in entries(root / below) if entry.name.endswith(".tar") and not entry.is_dir()]
    return [os.path.join(below, name) for name in names]


def _class_names(root: Path) -> tuple[str, ...] | None:
    path = next((root / name for name in _CLASS_LISTS if os.path.isfile(root / name)), None)
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"class names {path}: cannot be read ({error}).") from error
    if "" in names:
        raise InputError(f"class names {path}: expected a name on each line, found an empty one.")
    # ImageNet has two classes "crane" and two "maillot".
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} ({number})" for number, name in enumerate(names))


def _with_classes(files: ShardFiles, values: Labels, names: tuple[str, ...]) -> ShardFiles:
    """The files with indices of `values` (ascending) for labels."""
    strange = np.flatnonzero(~np.isin(files.labels, values))
    if len(strange):
        first = int(strange[0])
        raise InputError(
            f"image file {files.name(first)}: its label {files.labels[first]} is none of the {len(names)} classes "
            f"(lines of {' or '.join(_CLASS_LISTS)}, counted from 0, or else the labels of the training part)."
        )
    return replace(files, labels=np.searchsorted(values, files.labels), class_names=names)


class _File(NamedTuple):
    extension: str
    member: Member
    content: bytes  # of a label; an image stays where it is


class _Sample(NamedTuple):
    image: Member
    label: int


class _Shard(NamedTuple):
    samples: list[_Sample]
    bad: list[tuple[str, str]]  # what is bad, why


def _index(root: Path, shards: list[str], bad_files: BadFiles) -> ShardFiles:
    """The images of some shards with their labels as they are stored, and without class names."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        read = list(pool.map(lambda name: _read_shard(os.path.join(root, name)), shards))
    for shard in read:
        for name, reason in shard.bad:
            bad_files.note(name, reason)
    samples = [sample for shard in read for sample in shard.samples]
    if not samples:
        raise InputError(f"data folder {root}: no usable image in the shards {shards[0]} to {shards[-1]}.")
    return ShardFiles(
        root,
        tuple(shards),
        shard_of=np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.samples) for shard in read]),
        members=np.array([sample.image.name for sample in samples], dtype=np.bytes_),
        offsets=np.array([sample.image.offset for sample in samples], dtype=np.int64),
        sizes=np.array([sample.image.size for sample in samples], dtype=np.int64),
        labels=np.array([sample.label for sample in samples], dtype=np.int64),
        class_names=(),
    )


def _read_shard(path: str) -> _Shard:
    """The usable samples of one shard."""
    keys: dict[bytes, list[_File]] = {}
    bad: list[tuple[str, str]] = []
    cut_off = None
    try:
        with open(path, "rb") as file:
            for key, found in _files(file):
                keys.setdefault(key, []).append(found)
    except OSError as error:
        raise InputError(f"shard {path}: cannot be read ({error.strerror}).") from error
    except DamagedTarError as error:
        bad.append((path, f"{error}, after {len(keys)} samples"))
        cut_off = next(reversed(keys), None)
    samples = []
    for key, files in keys.items():
        try:
            samples.append(_sample(files))
        except BadFileError as error:
            if key != cut_off:  # the shard itself has been named
                bad.append((os.path.join(path, os.fsdecode(key)), str(error)))
    return _Shard(samples, bad)


def _files(file: BinaryIO) -> Iterator[tuple[bytes, _File]]:
    """The images and labels in a shard with their keys."""
    for member in members(file):
        stem, dot, rest = member.name.rpartition(b"/")[2].partition(b".")
        extension = os.fsdecode(dot + rest).lower()
        if not stem or extension not in _EXTENSIONS:
            continue
        content = b""
        if extension in _LABELS:
            file.seek(member.offset)
            content = file.read(member.size)
        yield member.name.removesuffix(dot + rest), _File(extension, member, content)


def _sample(files: list[_File]) -> _Sample:
    """The image and the label among the files of one key.

    Raises:
        BadFileError: one is missing, or there are two.
    """
    images = [file.member for file in files if file.extension in SUFFIXES]
    # Text before JSON.
    labels = sorted((file for file in files if file.extension in _LABELS), key=lambda file: file.extension)
    if len(images) > 1 or len({label.extension for label in labels}) < len(labels):
        raise BadFileError("its key occurs twice in the shard")
    if not images:
        raise BadFileError("there is no image beside its label")
    for label in labels:
        value = _label(label)
        if value is not None:
            return _Sample(images[0], value)
    raise BadFileError('there is no label beside it (an integer in .cls, or as "label" in .json)')


def _label(file: _File) -> int | None:
    """The label in a file, if there is one."""
    try:
        value = int(file.content) if file.extension == ".cls" else json.loads(file.content)["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return value if type(value) is int and abs(value) < 1 << 63 else None
