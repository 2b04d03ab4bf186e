"""Parts of a data set: which images a batch holds is decided here, once for every kind of storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.data.augment import Augment
from greedynas_fast.data.seeds import Stream, numpy_generator
from greedynas_fast.errors import InputError

Positions = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


class Job(NamedTuple):
    """The order for one batch.

    Attributes:
        positions: int64 [B], places in the split, of the whole batch over all ranks.
        rows: the rows of the batch that are to be made: this rank's.
        seed: of the augmentation.
        step: of the training, counted from 0.
        epoch: of the training, counted from 0.
        augment: None for the evaluation transform.
    """

    positions: Positions
    rows: slice = slice(None)
    seed: int = 0
    step: int = 0
    epoch: int = 0
    augment: Augment | None = None

    @property
    def mine(self) -> Positions:
        """The positions in `rows`."""
        return self.positions[self.rows]


class Split(ABC):
    """Images with labels, in a fixed order.

    Batches are images float32 [B, C, H, W] (channels-last in memory, normalised) and labels int64 [B], on the CPU.
    """

    def __init__(self, labels: Labels) -> None:
        """Takes the class of each image.

        Args:
            labels: int64 [n].
        """
        self._labels = labels

    def __len__(self) -> int:
        """The number of images."""
        return len(self._labels)

    @property
    def labels(self) -> Labels:
        """The class of each image, int64 [n] (a copy)."""
        return self._labels.copy()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the rest of a pass is left out.

        Raises:
            InputError: a batch is larger than the split.
        """
        if not 0 < batch_size <= len(self):
            raise InputError(f"batch_size: expected 1 to {len(self)} (the images there are), got {batch_size}.")
        return len(self) // batch_size

    def batches(
        self,
        batch_size: int,
        *,
        start_step: int,
        num_steps: int,
        seed: int,
        augment: Augment,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of the steps `start_step` .. `start_step + num_steps - 1`.

        Each epoch goes through a fresh permutation. The content of a batch is a pure function of (seed, step): it does
        not depend on where the iteration began, or on the number of workers or ranks. A rank gets rows
        rank * B // num_ranks .. (rank + 1) * B // num_ranks - 1 of the batch of B images.

        Args:
            batch_size: images a batch, over all ranks (B); the last images of an epoch that do not fill one are left
                out.
            start_step: the first step, counted from 0 over all epochs.
            num_steps: how many batches.
            seed: at least 0.
            augment: what to do with the images.
            rank: this process, 0 .. num_ranks - 1.
            num_ranks: processes that share each batch.

        Raises:
            InputError: the batch is larger than the split or has no image for a rank, or a bad file is not to be
                skipped.
        """
        per_epoch = self.steps_per_epoch(batch_size)
        rows = _part(batch_size, rank, num_ranks)
        if batch_size < num_ranks:
            raise InputError(
                f"batch_size: expected at least one image for each of {num_ranks} ranks, got {batch_size}."
            )
        steps = range(start_step, start_step + num_steps)
        return self._load(
            Job(positions, rows, seed, step, step // per_epoch, augment)
            for step, positions in self._shuffled(batch_size, per_epoch, steps, seed)
        )

    def sequential(self, batch_size: int, *, rank: int = 0, num_ranks: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order without augmentation; the last batch may be smaller.

        Args:
            batch_size: images a batch.
            rank: this process, 0 .. num_ranks - 1.
            num_ranks: processes that divide the batches; all of rank 0 come first, and a rank may have none.

        Raises:
            InputError: a bad file is not to be skipped.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}.")
        starts = range(0, len(self), batch_size)
        starts = starts[_part(len(starts), rank, num_ranks)]
        return self._load(Job(np.arange(start, min(start + batch_size, len(self)))) for start in starts)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images and labels at once, as `sequential` gives them, images in channels-last memory."""
        # Filled as they come: joined in the end, images would be held twice for a moment.
        images, labels, row = torch.empty(0), torch.empty(len(self), dtype=torch.int64), 0
        for some, their in self.sequential(256):
            if row == 0:
                shape = (len(self), *some.shape[1:])
                images = torch.empty(shape, dtype=some.dtype, device=some.device, memory_format=torch.channels_last)
            place = slice(row, row + len(some))
            images[place], labels[place] = some, their
            row = place.stop
        return images, labels

    def subset(self, n: int, seed: int) -> Split:
        """A fixed part of `n` images with the class shares of the whole, in the order of the whole.

        Raises:
            InputError: there are fewer than `n` images.
        """
        if not 0 < n <= len(self):
            raise InputError(f"subset: expected 1 to {len(self)} images, got {n}.")
        return self.select(stratified(self._labels, n, numpy_generator(seed, Stream.SUBSET)))

    def in_dtype(self, dtype: torch.dtype) -> Split:
        """The same part; batches that are made on a GPU have this dtype, all others stay float32."""
        return self

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a back end takes up again when it goes on with the batch of `step`; plain values, for a checkpoint.

        Batches depend on (seed, step) alone, so they are the same without it.

        Args:
            step: of the batches that were made last, or the one after them.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` of this back end or of another one gave, for `batches` that begin at its step."""
        del state  # here, (seed, step) says all

    @abstractmethod
    def names(self) -> list[str]:
        """What tells each image from the others: its file below the data folder, or its index in the data set."""

    @abstractmethod
    def select(self, positions: Positions) -> Split:
        """The part with the images at `positions`, int64 [m]."""

    @abstractmethod
    def _load(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        """Makes the batches that are ordered."""

    def _shuffled(self, batch_size: int, per_epoch: int, steps: range, seed: int) -> Iterator[tuple[int, Positions]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = numpy_generator(seed, Stream.SHUFFLE, epoch).permutation(len(self))
            start = step % per_epoch * batch_size
            yield step, order[start : start + batch_size]


def _part(count: int, rank: int, num_ranks: int) -> slice:
    """A rank's part of `count` things: contiguous, all ranks' parts in order are the whole."""
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank: expected a rank in 0..{num_ranks - 1}, got {rank}")
    return slice(rank * count // num_ranks, (rank + 1) * count // num_ranks)


def candidates(labels: Labels, position: int) -> Iterator[int]:
    """The places whose image may stand at `position`: itself, then the others of its class, the next ones first.

    Args:
        labels: int64 [n], the class of each image of a part.
        position: in the part.
    """
    yield position
    same = np.flatnonzero(labels == labels[position])
    start = int(np.searchsorted(same, position)) + 1
    yield from (int(place) for place in np.roll(same, -start)[:-1])


def stratified(labels: Labels, n: int, generator: np.random.Generator, *, leave: int = 0) -> Positions:
    """Chooses `n` images so that every class has its share, up to rounding (largest remainders).

    Args:
        labels: int64 [total].
        n: how many.
        generator: decides which images of a class.
        leave: images that must stay behind in every class.

    Returns:
        Positions int64 [n], ascending.

    Raises:
        InputError: the classes cannot give `n` images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    room = np.maximum(counts - leave, 0)
    if n > room.sum():
        raise InputError(
            f"cannot choose {n} of {len(labels)} images in {len(classes)} classes and leave {leave} in every class."
        )
    ideal = n * counts / len(labels)
    take = np.minimum(np.floor(ideal).astype(np.int64), room)
    while (missing := n - take.sum()) > 0:
        remainder = np.where(take < room, ideal - take, -np.inf)
        best = np.argsort(-remainder, kind="stable")[: min(missing, np.count_nonzero(take < room))]
        take[best] += 1
    chosen = [generator.permutation(np.flatnonzero(labels == c))[:k] for c, k in zip(classes, take, strict=True)]
    return np.sort(np.concatenate(chosen))


def divide(labels: Labels, n: int, generator: np.random.Generator) -> tuple[Positions, Positions]:
    """Divides all positions into (rest, part): `n` in the part, class by class, and at least one of each in the rest.

    Raises:
        InputError: the classes cannot give `n` images.
    """
    part = stratified(labels, n, generator, leave=1)
    return np.setdiff1d(np.arange(len(labels)), part), part
