"""A part of an image store, decoded and cut out by NVIDIA DALI."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.data.dali.decoder import Decoder
from greedynas_fast.data.dali.finish import Finisher
from greedynas_fast.data.dali.pipeline import PipelineForm, PipelineState, require
from greedynas_fast.data.dali.prepare import Batch, Preparer, Row
from greedynas_fast.data.draws import draw_erasing
from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.folder_split import FolderFormat
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.splits import Job, Positions, Split
from greedynas_fast.errors import InputError

# Batches that are being read, and finished ones that wait, beside those in the pipeline.
_READ_AHEAD = 2
_FINISHED_AHEAD = 2
# States of the pipeline that are kept: more than a training asks for batches ahead of its step.
_STATES = 8
# Images that one thread reads at a time.
_CHUNK = 8


class DaliSplit(Split):
    """Some images of a store, with the same batches as the torch back end up to the rounding of pixels.

    All decisions are drawn here and handed to DALI, so a batch is a pure function of (seed, step). It differs from the
    torch back end's by at most one grey value a pixel before the changes of `auto_augment` (torch rounds between the
    two directions of resizing, DALI does not), and by a few in the outermost rows and columns of a cut-out (where
    DALI's filter repeats the border, and torch's ends).

    The changes of `auto_augment` are Pillow's, in threads, or with `own_changes` DALI's, which are other functions
    (see `operators`) and take longer on a CPU. What is changed, and how much, is the same.

    With `device_id`, decoding and resizing is placed on that CUDA device, and normalisation too; only images that
    Pillow changes go over the CPU. That was never run on a GPU yet.
    """

    def __init__(
        self,
        store: ImageStore,
        indices: Positions,
        form: FolderFormat,
        bad_files: BadFiles,
        *,
        device_id: int | None = None,
        dtype: torch.dtype = torch.float32,
        own_changes: bool = False,
    ) -> None:
        """Takes the images at `indices`.

        Args:
            store: all images.
            indices: int64 [m], the part.
            form: resolution, channels, normalisation; `workers` threads decode, at least one.
            bad_files: is told about files that turn out bad when decoded.
            device_id: number of the CUDA device that decodes, and holds the batches; None for the CPU.
            dtype: of the images on the device, e.g. bfloat16; on the CPU they are float32.
            own_changes: whether DALI carries out the changes of `auto_augment`, or Pillow.

        Raises:
            InputError: DALI is not installed, or another dtype is wanted on the CPU.
        """
        super().__init__(store.labels[indices])
        require()
        if device_id is None and dtype != torch.float32:
            raise InputError(f"dtype: expected torch.float32 on the CPU, got {dtype}.")
        self._store, self._indices, self._form, self._bad_files = store, indices, form, bad_files
        self._device_id, self._dtype, self._own_changes = device_id, dtype, own_changes
        # The pipeline's before the batch of a step: of the batches that were made last, and the one to go on from.
        self._states: dict[int, PipelineState] = {}
        self._loaded: dict[int, PipelineState] = {}

    def names(self) -> list[str]:
        """The file of each image below the data folder."""
        return [os.path.relpath(self._store.name(int(index)), self._store.root) for index in self._indices]

    def select(self, positions: Positions) -> DaliSplit:
        """The part with the images at `positions`, int64 [m]."""
        return self._copy(self._indices[positions], self._form, self._dtype)

    def with_format(self, form: FolderFormat) -> DaliSplit:
        """The same part in another form."""
        return self._copy(self._indices, form, self._dtype)

    def in_dtype(self, dtype: torch.dtype) -> DaliSplit:
        """The same part; batches that are made on a GPU have this dtype, all others stay float32."""
        return self if self._device_id is None else self._copy(self._indices, self._form, dtype)

    def state_dict(self, step: int) -> dict[str, Any]:
        """DALI's checkpoint before the batch of `step`: `step`, `iteration`, `checkpoint`; empty if there is none.

        Args:
            step: of the batches that were made last, at most a few before the latest.
        """
        state = self._states.get(step)
        return {} if state is None else {"step": step, **state._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave; `batches` that begin at its step let DALI go on from its checkpoint."""
        if state:
            self._loaded = {state["step"]: PipelineState(state["iteration"], state["checkpoint"])}
            self._states = dict(self._loaded)

    def _copy(self, indices: Positions, form: FolderFormat, dtype: torch.dtype) -> DaliSplit:
        return DaliSplit(
            self._store,
            indices,
            form,
            self._bad_files,
            device_id=self._device_id,
            dtype=dtype,
            own_changes=self._own_changes,
        )

    def _load(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        first = next(jobs, None)
        if first is None:
            return iter(())
        if first.augment is not None and first.augment.auto_augment == "augmix":
            raise InputError("augment.auto_augment: DALI does not have augmix; set data.backend to torch.")
        return self._delivered(first, chain([first], jobs))

    def _delivered(self, first: Job, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches, made ahead in a thread of their own.

        It is a pool of one thread, and each batch a task of it: so no thread ever waits for the consumer, and nothing
        hangs when the consumer goes away.
        """
        with closing(self._made(first, jobs)) as made:
            maker = ThreadPoolExecutor(1, thread_name_prefix="dali-batches")
            try:
                tasks: deque[Future[_Made | None]] = deque()
                while True:
                    while len(tasks) <= _FINISHED_AHEAD:
                        tasks.append(maker.submit(next, made, None))
                    batch = tasks.popleft().result()
                    if batch is None:
                        return
                    self._tell(batch.source)
                    self._keep(batch)
                    if self._device_id is not None:  # made on another stream than it is used on
                        batch.images.record_stream(torch.cuda.current_stream(self._device_id))
                    yield batch.images, torch.from_numpy(self._labels[batch.source.job.mine])
            finally:
                maker.shutdown(cancel_futures=True)

    def _tell(self, batch: Batch) -> None:
        for index, reason in batch.bad:
            self._bad_files.note(self._store.name(index), reason)
        notices = self._bad_files.notices
        notices.extend(notice for notice in batch.notices if notice not in notices)
        if any(row.file < 0 for row in batch.rows):
            raise InputError(f"data folder {self._store.root}: a class has no usable image left.")

    def _keep(self, batch: _Made) -> None:
        job = batch.source.job
        if job.augment is None:  # not of a training
            return
        self._states.pop(job.step + 1, None)  # the oldest comes first
        self._states[job.step + 1] = batch.state
        if len(self._states) > _STATES:
            del self._states[next(iter(self._states))]

    def _boxes(self, job: Job) -> npt.NDArray[np.int32] | None:
        """The boxes that random erasing fills, of this rank's images; None without."""
        if job.augment is None or job.augment.random_erasing == 0:
            return None
        boxes = draw_erasing(job.augment.random_erasing, len(job.positions), self._form.resolution, job.seed, job.step)
        return boxes[job.rows]

    def _made(self, first: Job, jobs: Iterator[Job]) -> Generator[_Made, None, None]:
        """Reads, decodes and finishes batch after batch, several at a time."""
        num_threads = max(1, self._form.workers)
        preparer = Preparer(self._store, self._indices, self._form.resolution)
        padded = first.augment is not None and first.augment.crop == "pad" and first.augment.pad > 0
        own_changes = self._own_changes and first.augment is not None and first.augment.auto_augment is not None
        form = PipelineForm(
            len(first.mine),
            self._form.resolution,
            self._form.in_channels,
            padded,
            own_changes,
            num_threads,
            self._device_id,
        )
        state = None if first.augment is None else self._loaded.get(first.step)
        finisher = Finisher(self._form.mean, self._form.std, self._device_id is not None, self._dtype)
        with (
            ThreadPoolExecutor(num_threads, thread_name_prefix="dali-files") as threads,
            closing(Decoder(form, preparer, state)) as decoder,
        ):
            # Beside the stream of the training, so as not to wait for it; None is the CPU's.
            stream = None if self._device_id is None else torch.cuda.Stream(self._device_id)  # type: ignore[no-untyped-call]
            reading: deque[_Reading] = deque()
            while True:
                while decoder.has_room:
                    while len(reading) <= _READ_AHEAD and (job := next(jobs, None)) is not None:
                        reading.append(_Reading(job, preparer, threads))
                    if not reading:
                        break
                    decoder.put(reading.popleft().batch())
                if decoder.is_empty:
                    return
                with torch.cuda.stream(stream):
                    batch, pixels = decoder.take()
                    changes = [() if own_changes else row.changes for row in batch.rows]
                    images = finisher.finish(pixels, changes, self._boxes(batch.job), threads)
                if stream is not None:
                    stream.synchronize()
                yield _Made(images, batch, decoder.state)


class _Made(NamedTuple):
    images: Tensor  # [B, C, H, W]
    source: Batch
    state: PipelineState  # behind it


class _Reading:
    """A batch whose files are being read in threads."""

    def __init__(self, job: Job, preparer: Preparer, threads: ThreadPoolExecutor) -> None:
        self._job = job
        self._bad: list[list[tuple[int, str]]] = []
        self._parts: list[Future[list[Row]]] = []
        for start in range(0, len(job.mine), _CHUNK):
            bad: list[tuple[int, str]] = []
            self._bad.append(bad)
            self._parts.append(threads.submit(preparer.rows, job, job.mine[start : start + _CHUNK], bad))

    def batch(self) -> Batch:
        """Waits for the files."""
        rows = [row for part in self._parts for row in part.result()]
        return Batch(self._job, rows, [entry for bad in self._bad for entry in bad])
