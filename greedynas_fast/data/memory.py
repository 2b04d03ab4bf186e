"""A data set that fits into memory: uint8 images, augmented a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.data.augment import Augment, auto_augment_transform, crop_and_flip, erase, erase_boxes, normalise
from greedynas_fast.data.seeds import Stream, seed64, torch_generator
from greedynas_fast.data.splits import Job, Labels, Positions, Split

# A set that takes more when brought to its resolution is kept as it is, and brought there batch by batch.
_MAX_PREPARED_BYTES = 1 << 30

# Batches that are made at a time.
_MAX_AHEAD, _MAX_AHEAD_BYTES = 8, 4 << 20


class MemoryImages:
    """Images brought to one resolution and channel count, and the numbers that normalise them."""

    def __init__(
        self, images: npt.NDArray[np.uint8], *, resolution: int, in_channels: int, mean: float, std: float
    ) -> None:
        """Resizes what is not in shape yet (bilinear, antialiased, without regard to the aspect ratio).

        Args:
            images: grey, uint8 [n, height, width].
            resolution: height and width of a batch.
            in_channels: 1, or 3 for three equal channels.
            mean: of the grey values in 0..1.
            std: of the grey values in 0..1.
        """
        self._resolution, self._in_channels = resolution, in_channels
        self.mean = torch.full((in_channels,), mean)
        self.std = torch.full((in_channels,), std)
        self._images = torch.from_numpy(np.array(images))[..., None]  # [n, height, width, 1]
        if len(images) * resolution**2 <= _MAX_PREPARED_BYTES:
            starts = range(0, len(images), 1024)
            self._images = torch.cat([_resize(self._images[start : start + 1024], resolution) for start in starts])

    def take(self, indices: Positions) -> Tensor:
        """Images uint8 [B, H, W, C]."""
        images = _resize(self._images.index_select(0, torch.from_numpy(indices)), self._resolution)
        return images.expand(-1, -1, -1, self._in_channels)


class MemorySplit(Split):
    """A part of `MemoryImages`."""

    def __init__(self, images: MemoryImages, labels: Labels, indices: Positions) -> None:
        """Takes the part at `indices`.

        Args:
            images: all images.
            labels: int64 [n], of all images.
            indices: int64 [m], the part.
        """
        super().__init__(labels[indices])
        self._images, self._all_labels, self._indices = images, labels, indices

    def select(self, positions: Positions) -> MemorySplit:
        """The part with the images at `positions`, int64 [m]."""
        return MemorySplit(self._images, self._all_labels, self._indices[positions])

    def names(self) -> list[str]:
        """The index of each image in the training or test part of the data set."""
        return [str(index) for index in self._indices]

    def _load(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        ahead = 1
        while batches := [self._batch(job) for job in islice(jobs, ahead)]:
            yield from batches
            # Several small ones at a time: made between two training steps, one takes three times as long, for all
            # that it needs has left the caches.
            ahead = max(1, min(_MAX_AHEAD, _MAX_AHEAD_BYTES // max(1, batches[0][0].nbytes)))

    def _batch(self, job: Job) -> tuple[Tensor, Tensor]:
        if job.augment is None:
            images = self._images.take(self._indices[job.mine])
            batch = normalise(images, self._images.mean, self._images.std)
        else:
            batch = self._augmented(job, job.augment)
        return batch.permute(0, 3, 1, 2), torch.from_numpy(self._labels[job.mine])

    def _augmented(self, job: Job, augment: Augment) -> Tensor:
        # Crops and boxes are drawn for the whole batch at once, so all of it is cropped; the dear rest is done for the
        # rank's rows alone.
        generator = torch_generator(job.seed, Stream.AUGMENT_BATCH, job.step)
        images = crop_and_flip(self._images.take(self._indices[job.positions]), augment, generator)[job.rows]
        if augment.auto_augment is not None:
            indices = self._indices[job.mine]
            seeds = [seed64(job.seed, Stream.AUGMENT_SAMPLE, job.epoch, int(index)) for index in indices]
            images = _auto_augment(images, augment, seeds)
        batch = normalise(images, self._images.mean, self._images.std)
        if augment.random_erasing == 0:
            return batch
        _, height, width, _ = batch.shape
        boxes = erase_boxes(len(job.positions), height, width, augment.random_erasing, generator)
        return erase(batch, boxes[job.rows])


def _auto_augment(images: Tensor, augment: Augment, seeds: list[int]) -> Tensor:
    """Applies the policy to each image, uint8 [B, H, W, C], under its own seed."""
    from PIL import Image

    assert augment.auto_augment is not None
    transform = auto_augment_transform(augment.auto_augment)
    done = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.numpy(), seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed = np.array(transform(Image.fromarray(image if image.shape[2] == 3 else image[..., 0])))
            done.append(torch.from_numpy(changed).reshape(image.shape))
    return torch.stack(done)


def _resize(images: Tensor, resolution: int) -> Tensor:
    """Resizes uint8 [B, height, width, C] to [B, resolution, resolution, C]; the same images if they are in shape."""
    if images.shape[1:3] == (resolution, resolution):
        return images
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)
    resized = torch.nn.functional.interpolate(
        pixels, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
