"""The torch back end for stored images: decoded when a batch needs them, in worker processes if wished.

Images are tensors throughout, as turning a whole one into Pillow's form and back takes as long as resizing it. Changes
of `auto_augment` are Pillow's: for them the resized image, which is small, is turned.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from greedynas_fast.data.augment import Augment, auto_augment_transform, erase, normalise
from greedynas_fast.data.changes import apply_changes
from greedynas_fast.data.draws import ImageDraw, draw_erasing, draw_image, evaluation_short_side
from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.images import BadFileError, BadFiles, decode_pixels
from greedynas_fast.data.seeds import Stream, seed64
from greedynas_fast.data.splits import Job, Positions, Split, candidates
from greedynas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class FolderFormat(NamedTuple):
    """How images leave the store.

    Attributes:
        resolution: height and width in pixels.
        in_channels: 1 or 3.
        mean: float32 [C], of values in 0..1.
        std: float32 [C].
        workers: decoding processes, 0 for none.
    """

    resolution: int
    in_channels: int
    mean: Tensor
    std: Tensor
    workers: int


class FolderSplit(Split):
    """Some of the images of a store; nothing is held in memory but their names."""

    def __init__(self, files: ImageStore, indices: Positions, form: FolderFormat, bad_files: BadFiles) -> None:
        """Takes the images at `indices`.

        Args:
            files: all images.
            indices: int64 [m], the part.
            form: resolution, channels, normalisation, workers.
            bad_files: is told about files that turn out bad when decoded.
        """
        super().__init__(files.labels[indices])
        self._files, self._indices, self._form, self._bad_files = files, indices, form, bad_files

    def names(self) -> list[str]:
        """The file of each image below the data folder."""
        return [os.path.relpath(self._files.name(int(index)), self._files.root) for index in self._indices]

    def select(self, positions: Positions) -> Self:
        """The part with the images at `positions`, int64 [m]."""
        return type(self)(self._files, self._indices[positions], self._form, self._bad_files)

    def with_format(self, form: FolderFormat) -> Self:
        """The same part in another form."""
        return type(self)(self._files, self._indices, form, self._bad_files)

    def _load(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        # One item of the data set is a whole batch, so that a worker makes it as one; the loader keeps their order.
        # Its own generator: otherwise every loader would draw from torch's global one.
        loader = DataLoader(
            _Batches(self._files, self._indices, self._form),
            batch_size=None,
            sampler=_Once(jobs),
            num_workers=self._form.workers,
            collate_fn=_identity,
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator().manual_seed(0),
        )
        for batch in loader:
            for index, reason in batch.bad:
                self._bad_files.note(self._files.name(index), reason)
            if batch.images is None:
                raise InputError(f"data folder {self._files.root}: a class has no usable image left.")
            labels = torch.from_numpy(self._labels[batch.job.mine])
            yield self._finished(batch.images, batch.job).permute(0, 3, 1, 2), labels

    def _finished(self, images: Tensor, job: Job) -> Tensor:
        batch = normalise(images, self._form.mean, self._form.std)
        if job.augment is None or job.augment.random_erasing == 0:
            return batch
        boxes = draw_erasing(job.augment.random_erasing, len(job.positions), self._form.resolution, job.seed, job.step)
        return erase(batch, torch.from_numpy(boxes[job.rows]))


class _Batch(NamedTuple):
    job: Job
    images: Tensor | None  # uint8 [B, H, W, C]; None if an image could not be replaced
    bad: list[tuple[int, str]]  # index of the file, why


class _Batches(Dataset[_Batch]):
    """Makes batches; lives in the worker processes.

    It stops at uint8: floats would take four times the shared memory between the processes.
    """

    def __init__(self, files: ImageStore, indices: Positions, form: FolderFormat) -> None:
        self._files, self._indices, self._form = files, indices, form
        self._labels = files.labels[indices]

    def __getitem__(self, job: Job) -> _Batch:
        bad: list[tuple[int, str]] = []
        size = self._form.resolution
        pixels = []
        for position in job.mine:
            image = self._decode_or_replace(int(position), bad)
            if image is None:
                return _Batch(job, None, bad)
            seed = seed64(job.seed, Stream.AUGMENT_SAMPLE, job.epoch, int(self._indices[position]))
            pixels.append(_transformed(image, job.augment, seed, size).permute(1, 2, 0))
        return _Batch(job, torch.stack(pixels), bad)

    def _decode_or_replace(self, position: int, bad: list[tuple[int, str]]) -> Tensor | None:
        """The image at a position, or in place of a bad one the next good one of its class in the same part."""
        for candidate in candidates(self._labels, position):
            index = int(self._indices[candidate])
            try:
                return decode_pixels(self._files.read(index), self._files.name(index), self._form.in_channels)
            except BadFileError as error:
                bad.append((index, str(error)))
        return None


class _Once:
    """Hands the loader an iterator of jobs as its sampler."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs

    def __iter__(self) -> Iterator[Job]:
        return self._jobs


def _transformed(pixels: Tensor, augment: Augment | None, seed: int, resolution: int) -> Tensor:
    """One image, uint8 [C, H, W], as it comes into the batch, before it is normalised."""
    draw = draw_image(augment, seed, pixels.shape[1], pixels.shape[2], resolution)
    pixels = _cut_out(pixels, draw, 0 if augment is None else augment.pad, resolution)
    if augment is not None and augment.auto_augment == "augmix":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return _by_pillow(auto_augment_transform("augmix"), pixels)
    return _by_pillow(lambda image: apply_changes(image, draw.changes), pixels) if draw.changes else pixels


def _by_pillow(change: Callable[[Image], Image], pixels: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return cast("Tensor", functional.pil_to_tensor(change(functional.to_pil_image(pixels))))


def _cut_out(image: Tensor, draw: ImageDraw, pad: int, resolution: int) -> Tensor:
    """Crops, resizes and mirrors."""
    from torchvision.transforms.v2 import functional

    size = [resolution, resolution]
    if draw.box is not None:
        image = functional.resized_crop(image, *draw.box, size)
    else:
        image = functional.resize(image, [evaluation_short_side(resolution)])
        image = functional.center_crop(image, size)
    if draw.shift is not None:
        # Black where it reaches beyond the image: the padding.
        image = functional.crop(image, draw.shift[0] - pad, draw.shift[1] - pad, resolution, resolution)
    return cast("Tensor", functional.horizontal_flip(image)) if draw.mirrored else image


def _ignore_ctrl_c(worker: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the main one: it may want to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(value: T) -> T:
    return value
