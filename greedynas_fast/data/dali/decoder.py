"""Batches through the pipeline, in order, whatever single files do to it."""

from __future__ import annotations

from collections import deque

from torch import Tensor

from greedynas_fast.data.dali.pipeline import DEPTH, Pipeline, PipelineForm, PipelineState, reason
from greedynas_fast.data.dali.prepare import Batch, Preparer

_THE_SAME = "Batches are the same, since they depend on the seed and the step alone."


class Decoder:
    """A pipeline that is built anew when a file breaks it.

    A batch is the same whether or not another file in it, or before it, broke the pipeline.
    """

    def __init__(self, form: PipelineForm, preparer: Preparer, state: PipelineState | None) -> None:
        """Starts the pipeline.

        Args:
            form: of the pipeline.
            preparer: prepares rows again that DALI cannot decode.
            state: of the pipeline, to go on from; None to begin.

        Raises:
            InputError: DALI is missing, or cannot use the device.
        """
        self._form, self._preparer = form, preparer
        self._under_way: deque[Batch] = deque()
        self._pipeline = Pipeline(form, state)
        self._notices: list[str] = []  # for the next batch
        if self._pipeline.refusal is not None:
            self._notices.append(f"DALI does not go on from its checkpoint: {self._pipeline.refusal}. {_THE_SAME}")
        self._broken = False

    @property
    def has_room(self) -> bool:
        """Whether another batch may be put in."""
        return len(self._under_way) < DEPTH

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take out."""
        return not self._under_way

    def put(self, batch: Batch) -> None:
        """Starts the work on a batch."""
        self._under_way.append(batch)
        batch.notices += self._notices
        self._notices.clear()
        if not self._broken:
            try:
                self._put(batch)
            except RuntimeError:  # of an earlier batch, or of this one: `take` finds out
                self._broken = True

    def take(self) -> tuple[Batch, Tensor]:
        """The oldest batch, and its pixels uint8 [B, resolution, resolution, C].

        Raises:
            InputError: the pipeline cannot be started again.
        """
        batch = self._under_way.popleft()
        if not self._broken:
            try:
                return batch, self._pipeline.take()
            except RuntimeError:
                self._broken = True
        pixels = self._taken_with_care(batch)
        self._broken = False
        waiting, self._under_way = self._under_way, deque()
        for later in waiting:
            self.put(later)
        return batch, pixels

    @property
    def state(self) -> PipelineState:
        """Of the pipeline, after the batch that was taken last."""
        return self._pipeline.state

    def close(self) -> None:
        """Ends the threads; batches under way are lost."""
        self._pipeline.close()
        self._under_way.clear()

    def _taken_with_care(self, batch: Batch) -> Tensor:
        """Takes a batch through a new pipeline; if it breaks that one too, its images one by one."""
        self._restart()
        try:
            return self._at_once(batch)
        except RuntimeError:
            self._restart()
        for place in range(len(batch.rows)):
            try:
                self._at_once(Batch(batch.job, [batch.rows[place]], []))
            except RuntimeError as error:
                self._preparer.without_dali(batch, place, reason(error))
                self._restart()
        return self._at_once(batch)

    def _at_once(self, batch: Batch) -> Tensor:
        self._put(batch)
        return self._pipeline.take()

    def _put(self, batch: Batch) -> None:
        rows = batch.rows
        self._pipeline.put([r.encoded for r in rows], [r.region for r in rows], [r.changes for r in rows])

    def _restart(self) -> None:
        self._pipeline.close()
        self._pipeline = Pipeline(self._form)
