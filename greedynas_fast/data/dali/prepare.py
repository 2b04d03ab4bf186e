"""From an order for a batch to what the pipeline eats: reads, sniffs, draws, and replaces bad files."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from greedynas_fast.data.dali.geometry import Region, region
from greedynas_fast.data.dali.pipeline import ONE_PIXEL, ONE_REGION, as_pixmap
from greedynas_fast.data.draws import Change, draw_image
from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.images import BadFileError, decode
from greedynas_fast.data.jpeg import plain_size
from greedynas_fast.data.seeds import Stream, seed64
from greedynas_fast.data.splits import Job, Positions, candidates


class Row(NamedTuple):
    """One image of a batch.

    Attributes:
        file: index of the file it comes from; -1 if its class has no usable file.
        encoded: the file, or its pixels as a pixmap.
        region: what the pipeline shows of it.
        changes: what is done afterwards.
    """

    file: int
    encoded: bytes
    region: Region
    changes: tuple[Change, ...]


class Batch:
    """A batch under way."""

    def __init__(self, job: Job, rows: list[Row], bad: list[tuple[int, str]]) -> None:
        """Takes what was prepared.

        Args:
            job: the order.
            rows: one an image.
            bad: index of each bad file that was met, and why.
        """
        self.job, self.rows, self.bad = job, rows, bad
        self.notices: list[str] = []


class Preparer:
    """Prepares the images of one part."""

    def __init__(self, store: ImageStore, indices: Positions, resolution: int) -> None:
        """Takes the files at `indices`.

        Args:
            store: all files.
            indices: int64 [m], the part.
            resolution: height and width of a result.
        """
        self._store, self._indices, self._resolution = store, indices, resolution
        self._labels = store.labels[indices]
        # Files that look plain, but that DALI cannot decode.
        self._odd: set[int] = set()

    def rows(self, job: Job, positions: Positions, bad: list[tuple[int, str]]) -> list[Row]:
        """The rows for some positions of the order; tells `bad` about bad files."""
        return [self._row(job, int(position), bad) for position in positions]

    def without_dali(self, batch: Batch, place: int, reason: str) -> None:
        """Prepares a row again after DALI could not decode its file: now others have to."""
        index = batch.rows[place].file
        self._odd.add(index)
        batch.rows[place] = self._row(batch.job, int(batch.job.mine[place]), batch.bad)
        if batch.rows[place].file == index:
            name = self._store.name(index)
            batch.notices.append(f"Image file {name} is decoded without DALI, which cannot: {reason}.")

    def _row(self, job: Job, position: int, bad: list[tuple[int, str]]) -> Row:
        """The image at a position, or in place of a bad one the next good one of its class in the same part."""
        for candidate in candidates(self._labels, position):
            index = int(self._indices[candidate])
            try:
                encoded, height, width = self._source(index)
            except BadFileError as error:
                bad.append((index, str(error)))
                continue
            seed = seed64(job.seed, Stream.AUGMENT_SAMPLE, job.epoch, int(self._indices[position]))
            draw = draw_image(job.augment, seed, height, width, self._resolution)
            pad = 0 if job.augment is None else job.augment.pad
            return Row(index, encoded, region(draw, height, width, self._resolution, pad), draw.changes)
        return Row(-1, ONE_PIXEL, ONE_REGION, ())

    def _source(self, index: int) -> tuple[bytes, int, int]:
        """The file, its height and its width; the pixels as a pixmap where DALI may not see what Pillow sees."""
        data = self._store.read(index)
        size = plain_size(data)
        if size is not None and index not in self._odd:
            return data, *size
        pixels = np.asarray(decode(data, self._store.name(index), 3))
        return as_pixmap(pixels), *pixels.shape[:2]
