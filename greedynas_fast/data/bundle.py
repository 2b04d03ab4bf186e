"""Opening a data set: detection, division into train, validation and test, normalisation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from greedynas_fast.data import folder, idx, sample, shards
from greedynas_fast.data.backend import IN_MEMORY, reader, refuse_in_memory
from greedynas_fast.data.config import DataConfig, resolve_size
from greedynas_fast.data.files import ImageStore, check
from greedynas_fast.data.folder_split import FolderFormat, FolderSplit
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.memory import MemoryImages, MemorySplit
from greedynas_fast.data.seeds import Stream, numpy_generator
from greedynas_fast.data.splits import Labels, Split, divide, stratified
from greedynas_fast.errors import InputError

# Mean and standard deviation of the sample's 4,000 training images (values in 0..1).
SAMPLE_MEAN, SAMPLE_STD = 0.2868, 0.3543
# ImageNet's, as in torchvision and timm; for grey images the mean's luma (ITU-R 601) and the mean of the deviations.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_GREY_MEAN, IMAGENET_GREY_STD = 0.459, 0.226
# Sec. 5.1: 50,000 training images are held out; small sets give a quarter.
_MAX_VALIDATION, _VALIDATION_SHARE = 50_000, 0.25
_MAX_FILES_CHECKED = 2_000
_MAX_FILES_MEASURED = 1_000


@dataclass(frozen=True)
class DataBundle:
    """The parts of one data set.

    Attributes:
        train: the training images without the held-out ones.
        validation: held out of the training images, class by class; for decisions.
        test: the set's own test part, for final figures only; None if the set has none.
        full_train: `train` and `validation` together, for the final training of a chosen network.
        num_classes: the number of classes.
        class_names: their names, in the order of the labels.
        mean: of each channel (values in 0..1), which batches have taken out.
        std: standard deviation of each channel, by which batches are divided.
        notices: sentences to show to the user, e.g. about skipped files; grows while images are read.
        backend: what reads the images, `dali` or `torch`, and why; one sentence.
    """

    train: Split
    validation: Split
    test: Split | None
    full_train: Split
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: list[str]
    backend: str

    def held_out(self) -> list[str]:
        """Which images `validation` holds: their files below the training images' folder, or their indices as text."""
        return self.validation.names()


@dataclass(frozen=True)
class _Shape:
    """Of the images in a batch."""

    resolution: int
    in_channels: int


@dataclass(frozen=True)
class _Parts:
    """What a format reader gives: all training images, the test part and what `DataBundle` tells about them."""

    train: Split
    test: Split | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notices: list[str]
    backend: str


def open_data(
    config: DataConfig, *, resolution: int, in_channels: int, seed: int, gpu: int | None = None
) -> DataBundle:
    """Opens the data set that `config` names.

    Args:
        config: what the user says.
        resolution: height and width of the images in a batch, in pixels.
        in_channels: 1 (grey) or 3 (RGB); images are converted.
        seed: decides which images are held out, at least 0.
        gpu: number of the CUDA device for `dali_device: gpu`; None where there is none.

    Returns:
        The parts; equal arguments on equal files give equal parts.

    Raises:
        InputError: the data cannot be used; the message names the file, folder or option.
    """
    if in_channels not in (1, 3):
        raise InputError(f"in_channels: expected 1 (grey) or 3 (RGB), got {in_channels}.")
    if resolution < 1:
        raise InputError(f"resolution: expected at least 1 pixel, got {resolution}.")
    if seed < 0:
        raise InputError(f"seed: expected at least 0, got {seed}.")
    if config.dali_device == "gpu" and gpu is None:
        raise InputError("data.dali_device: gpu needs a run on a GPU, but this one is on the CPU.")
    shape = _Shape(resolution, in_channels)
    if config.root is None:
        refuse_in_memory(config.backend)
        return _bundle(config, _open_sample(config, shape), seed)
    root = Path(config.root).expanduser()
    # os.path answers False where the methods of Path raise: in a folder that may not be read.
    if not os.path.isdir(root):
        found = "found a file" if os.path.exists(root) else "there is none that you may enter"
        raise InputError(f"data folder {root}: expected a folder, {found}.")
    if config.format == "idx" or (config.format == "auto" and idx.has_idx_files(root)):
        refuse_in_memory(config.backend)
        return _bundle(config, _open_idx(root, shape), seed)
    return _bundle(config, _open_files(root, config, shape, seed, gpu), seed)


def _open_sample(config: DataConfig, shape: _Shape) -> _Parts:
    arrays = sample.load()
    mean, std = SAMPLE_MEAN, SAMPLE_STD
    if config.normalisation == "computed":
        mean, std = _grey_statistics(arrays.train_images)
    train = _memory_split(arrays.train_images, arrays.train_labels.astype(np.int64), shape, mean, std)
    test = _memory_split(arrays.test_images, arrays.test_labels.astype(np.int64), shape, mean, std)
    return _Parts(train, test, sample.CLASS_NAMES, *_each_channel(shape, mean, std), [], IN_MEMORY)


def _open_idx(root: Path, shape: _Shape) -> _Parts:
    images, raw_labels = idx.read_part(root, "train")
    classes, labels = np.unique(raw_labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"data folder {root}: expected at least two classes, all training labels are {classes[0]}.")
    mean, std = _grey_statistics(images)
    train = _memory_split(images, labels.astype(np.int64), shape, mean, std)
    test = None
    if idx.has_part(root, "t10k"):
        images, raw_labels = idx.read_part(root, "t10k")
        unknown = np.setdiff1d(raw_labels, classes)
        if len(unknown):
            raise InputError(f"data folder {root}: the test label {unknown[0]} does not occur in the training part.")
        test = _memory_split(images, np.searchsorted(classes, raw_labels).astype(np.int64), shape, mean, std)
    names = tuple(str(label) for label in classes)
    return _Parts(train, test, names, *_each_channel(shape, mean, std), [], IN_MEMORY)


def _open_files(root: Path, config: DataConfig, shape: _Shape, seed: int, gpu: int | None) -> _Parts:
    notices: list[str] = []
    bad_files = BadFiles(config.on_bad_file, config.max_bad_files, notices)
    if os.path.isdir(root / "val") and not os.path.isdir(root / "train"):
        raise InputError(f"data folder {root}: there is a val/ folder, but no train/ beside it.")
    in_shards = config.format == "shards" or (config.format == "auto" and shards.has_shards(root))
    read_by = reader(config.backend, gpu if config.dali_device == "gpu" else None, config.dali_augment == "dali")
    stores = (shards if in_shards else folder).open_parts(root, bad_files)
    train = _checked(stores.train, config, bad_files)
    form = _file_format(config, shape)
    if config.normalisation == "computed":
        form = _measured(FolderSplit(train, np.arange(len(train)), form, bad_files), form, seed)
    everything = read_by.split(train, np.arange(len(train)), form, bad_files)
    test = None
    if not stores.divided:
        count = resolve_size("test_size", config.test_size, len(train))
        rest, held_out = divide(train.labels, count, numpy_generator(seed, Stream.TEST_PART))
        everything, test = everything.select(rest), everything.select(held_out)
    elif stores.test is not None:
        files = _checked(stores.test, config, bad_files)
        test = read_by.split(files, np.arange(len(files)), form, bad_files)
    mean, std = tuple(form.mean.tolist()), tuple(form.std.tolist())
    return _Parts(everything, test, train.class_names, mean, std, notices, read_by.reason)


def _checked(files: ImageStore, config: DataConfig, bad_files: BadFiles) -> ImageStore:
    wanted = config.check_files == "all" or (config.check_files == "auto" and len(files) <= _MAX_FILES_CHECKED)
    return check(files, bad_files) if wanted else files


def _file_format(config: DataConfig, shape: _Shape) -> FolderFormat:
    grey = shape.in_channels == 1
    mean = torch.tensor([IMAGENET_GREY_MEAN] if grey else IMAGENET_MEAN)
    std = torch.tensor([IMAGENET_GREY_STD] if grey else IMAGENET_STD)
    return FolderFormat(shape.resolution, shape.in_channels, mean, std, config.workers)


def _measured(everything: FolderSplit, form: FolderFormat, seed: int) -> FolderFormat:
    """The format with the mean and deviation of up to 1,000 images, class by class; the same for every back end."""
    plain = form._replace(mean=torch.zeros(form.in_channels), std=torch.ones(form.in_channels))
    some = everything.with_format(plain).subset(min(_MAX_FILES_MEASURED, len(everything)), seed)
    total = torch.zeros(2, form.in_channels, dtype=torch.float64)
    for images, _ in some.sequential(64):
        pixels = images.double()
        total += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = total / (len(some) * form.resolution**2)
    std = (square - mean.square()).clamp(min=1e-6).sqrt()
    return form._replace(mean=mean.float(), std=std.float())


def _each_channel(shape: _Shape, mean: float, std: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Grey statistics for every channel of the batches."""
    return (mean,) * shape.in_channels, (std,) * shape.in_channels


def _memory_split(images: idx.Bytes, labels: Labels, shape: _Shape, mean: float, std: float) -> MemorySplit:
    held = MemoryImages(images, resolution=shape.resolution, in_channels=shape.in_channels, mean=mean, std=std)
    return MemorySplit(held, labels, np.arange(len(labels)))


def _grey_statistics(images: idx.Bytes) -> tuple[float, float]:
    """Mean and standard deviation of all values in 0..1, from exact sums."""
    counts = np.bincount(images.reshape(-1), minlength=256)
    values = np.arange(256) / 255
    mean = float(counts @ values) / images.size
    return mean, max(float(counts @ (values - mean) ** 2 / images.size) ** 0.5, 1e-3)


def _bundle(config: DataConfig, parts: _Parts, seed: int) -> DataBundle:
    """Applies the limits and holds out the validation part."""
    train = _limited(parts.train, config.train_limit, seed)
    if len(np.unique(train.labels)) < len(parts.class_names):
        raise InputError(
            f"data.train_limit: {config.train_limit} images are too few: some of the {len(parts.class_names)} classes "
            "have none."
        )
    size = config.validation_size
    if size is None:
        count = min(_MAX_VALIDATION, max(1, round(_VALIDATION_SHARE * len(train))))
    else:
        count = resolve_size("validation_size", size, len(train))
    rest, held_out = divide(train.labels, count, numpy_generator(seed, Stream.VALIDATION_PART))
    validation = train.select(held_out)
    return DataBundle(
        train=train.select(rest),
        validation=validation,
        test=None if parts.test is None else _limited(parts.test, config.test_limit, seed),
        full_train=train,
        num_classes=len(parts.class_names),
        class_names=parts.class_names,
        mean=parts.mean,
        std=parts.std,
        notices=parts.notices,
        backend=parts.backend,
    )


def _limited(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split):
        return split
    return split.select(stratified(split.labels, limit, numpy_generator(seed, Stream.LIMIT)))
