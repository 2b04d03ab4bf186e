"""A part of a folder of images, decoded when a batch needs them, in worker processes if wished."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from greedynas_fast.data.augment import Augment, auto_augment_transform, erase, normalise
from greedynas_fast.data.folder import ImageFiles
from greedynas_fast.data.images import BadFileError, BadFiles, decode
from greedynas_fast.data.seeds import Stream, seed64, torch_generator
from greedynas_fast.data.splits import Job, Positions, Split
from greedynas_fast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class FolderFormat(NamedTuple):
    """How images leave the folder.

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
    """Some of the files of a folder; nothing is held in memory but their names."""

    def __init__(self, files: ImageFiles, indices: Positions, form: FolderFormat, bad_files: BadFiles) -> None:
        """Takes the files at `indices`.

        Args:
            files: all files.
            indices: int64 [m], the part.
            form: resolution, channels, normalisation, workers.
            bad_files: is told about files that turn out bad when decoded.
        """
        super().__init__(files.labels[indices])
        self._files, self._indices, self._form, self._bad_files = files, indices, form, bad_files

    def select(self, positions: Positions) -> FolderSplit:
        """The part with the files at `positions`, int64 [m]."""
        return FolderSplit(self._files, self._indices[positions], self._form, self._bad_files)

    def with_format(self, form: FolderFormat) -> FolderSplit:
        """The same part in another form."""
        return FolderSplit(self._files, self._indices, form, self._bad_files)

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
                self._bad_files.note(self._files.path(index), reason)
            if batch.images is None:
                raise InputError(f"data folder {self._files.root}: a class has no usable image left.")
            labels = torch.from_numpy(self._labels[batch.job.positions])
            yield self._finished(batch.images, batch.job).permute(0, 3, 1, 2), labels

    def _finished(self, images: Tensor, job: Job) -> Tensor:
        batch = normalise(images, self._form.mean, self._form.std)
        if job.augment is None or job.augment.random_erasing == 0:
            return batch
        return erase(batch, job.augment.random_erasing, torch_generator(job.seed, Stream.AUGMENT_BATCH, job.step))


class _Batch(NamedTuple):
    job: Job
    images: Tensor | None  # uint8 [B, H, W, C]; None if an image could not be replaced
    bad: list[tuple[int, str]]  # index of the file, why


class _Batches(Dataset[_Batch]):
    """Makes batches; lives in the worker processes.

    It stops at uint8: floats would take four times the shared memory between the processes.
    """

    def __init__(self, files: ImageFiles, indices: Positions, form: FolderFormat) -> None:
        self._files, self._indices, self._form = files, indices, form

    def __getitem__(self, job: Job) -> _Batch:
        bad: list[tuple[int, str]] = []
        transform = _sample_transform(self._form.resolution, job.augment)
        pixels = []
        with torch.random.fork_rng(devices=[]):
            for position in job.positions:
                image = self._decode_or_replace(int(position), bad)
                if image is None:
                    return _Batch(job, None, bad)
                seed = seed64(job.seed, Stream.AUGMENT_SAMPLE, job.epoch, int(self._indices[position]))
                torch.default_generator.manual_seed(seed)
                pixels.append(torch.from_numpy(np.array(transform(image))))
        size = self._form.resolution
        return _Batch(job, torch.stack(pixels).reshape(-1, size, size, self._form.in_channels), bad)

    def _decode_or_replace(self, position: int, bad: list[tuple[int, str]]) -> Image | None:
        """The image at a position, or in place of a bad one the next good one of its class in the same part."""
        for candidate in self._candidates(position):
            index = int(self._indices[candidate])
            try:
                return decode(self._files.path(index), self._form.in_channels)
            except BadFileError as error:
                bad.append((index, str(error)))
        return None

    def _candidates(self, position: int) -> Iterator[int]:
        yield position
        labels = self._files.labels[self._indices]
        same = np.flatnonzero(labels == labels[position])
        start = int(np.searchsorted(same, position)) + 1
        yield from (int(candidate) for candidate in np.roll(same, -start)[:-1])


class _Once:
    """Hands the loader an iterator of jobs as its sampler."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs

    def __iter__(self) -> Iterator[Job]:
        return self._jobs


def _sample_transform(resolution: int, augment: Augment | None) -> Any:
    """Transform of one PIL image to [resolution, resolution].

    Evaluation: the shorter side to resolution * 256 / 224, then the centre (at 224 the usual 256 and 224).
    """
    from torchvision.transforms import v2

    steps: list[Any] = []
    if augment is not None and augment.crop == "random_resized":
        steps.append(v2.RandomResizedCrop(resolution, scale=(augment.min_area, 1.0)))
    else:
        steps += [v2.Resize(round(resolution * 256 / 224)), v2.CenterCrop(resolution)]
    if augment is not None:
        if augment.crop == "pad" and augment.pad > 0:
            steps.append(v2.RandomCrop(resolution, padding=augment.pad))
        if augment.flip:
            steps.append(v2.RandomHorizontalFlip())
        if augment.auto_augment is not None:
            steps.append(auto_augment_transform(augment.auto_augment))
    return v2.Compose(steps)


def _ignore_ctrl_c(worker: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the main one: it may want to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(value: T) -> T:
    return value
