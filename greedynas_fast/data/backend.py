"""Which back end reads image files: DALI or torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Literal, NamedTuple

from torch import Tensor
from torch import dtype as Dtype

from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.folder_split import FolderFormat, FolderSplit
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.jpeg import torchvision_decoder
from greedynas_fast.data.splits import Job, Positions, Split
from greedynas_fast.errors import InputError

Backend = Literal["auto", "dali", "torch"]
IN_MEMORY = "torch: the images lie in memory, so there are no files to decode."


class Reader(NamedTuple):
    """A back end for image files.

    Attributes:
        split: makes a part of a store from (store, indices, form, bad_files).
        reason: one sentence for the user: which back end it is, and why.
    """

    split: Callable[[ImageStore, Positions, FolderFormat, BadFiles], Split]
    reason: str


def reader(wanted: Backend, device_id: int | None = None, own_changes: bool = False) -> Reader:
    """Chooses a back end for image files.

    Args:
        wanted: `dali`, `torch`, or `auto` for DALI where it can be imported.
        device_id: number of the CUDA device on which `dali` is to decode; None for the CPU.
        own_changes: whether `dali` carries out automatic augmentation itself, or Pillow.

    Raises:
        InputError: DALI is insisted on, and cannot be used.
    """
    if wanted == "torch":
        return Reader(FolderSplit, f"torch: {_decoders()}, as data.backend says.")
    # Imported here: it takes its time, and torch does without.
    from greedynas_fast.data.dali import DaliSplit
    from greedynas_fast.data.dali.pipeline import require

    try:
        version = require()
    except InputError as error:
        if wanted == "dali":
            raise InputError(f"data.backend: dali cannot be used: {error}") from error
        why = str(error.__cause__ or error).rstrip(".")
        return Reader(FolderSplit, f"torch: {_decoders()}; there is no DALI ({why}).")
    found = f"dali: NVIDIA DALI {version} decodes the image files"
    if wanted == "dali":
        where = "" if device_id is None else f" on CUDA device {device_id}"
        split = partial(DaliSplit, device_id=device_id, own_changes=own_changes)
        return Reader(split, f"{found}{where}, as data.backend says.")
    return Reader(_dali_or_torch, f"{found}; it can be imported, and data.backend is auto.")


def _decoders() -> str:
    if torchvision_decoder() is None:
        return "Pillow decodes the image files (this torchvision has no decode_jpeg, which takes less time)"
    return "torchvision and Pillow decode the image files"


def refuse_in_memory(wanted: Backend) -> None:
    """Checks the option for data that lie in memory.

    Raises:
        InputError: DALI is insisted on.
    """
    if wanted == "dali":
        raise InputError(
            "data.backend: dali decodes image files, but the images of this data set lie in memory; set it to auto or "
            "torch."
        )


class FallbackSplit(Split):
    """A part that DALI reads, save for augmentation that DALI does not have."""

    def __init__(self, dali: Split, torch: Split, notices: list[str]) -> None:
        """Takes the same part twice.

        Args:
            dali: as DALI reads it.
            torch: as torch reads it.
            notices: gets a sentence when torch takes over.
        """
        super().__init__(dali.labels)
        self._dali, self._torch, self._notices = dali, torch, notices

    def names(self) -> list[str]:
        """The file of each image below the data folder."""
        return self._dali.names()

    def select(self, positions: Positions) -> FallbackSplit:
        """The part with the images at `positions`, int64 [m]."""
        return FallbackSplit(self._dali.select(positions), self._torch.select(positions), self._notices)

    def in_dtype(self, dtype: Dtype) -> FallbackSplit:
        """The same part; batches that are made on a GPU have this dtype, all others stay float32."""
        return FallbackSplit(self._dali.in_dtype(dtype), self._torch, self._notices)

    def _load(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, Tensor]]:
        first = next(jobs, None)
        if first is None:
            return iter(())
        jobs = chain([first], jobs)
        if first.augment is None or first.augment.auto_augment != "augmix":
            return self._dali._load(jobs)
        notice = "DALI does not have augment.auto_augment = augmix: torch reads the training images."
        if notice not in self._notices:
            self._notices.append(notice)
        return self._torch._load(jobs)


def _dali_or_torch(store: ImageStore, indices: Positions, form: FolderFormat, bad_files: BadFiles) -> FallbackSplit:
    from greedynas_fast.data.dali import DaliSplit

    dali = DaliSplit(store, indices, form, bad_files)
    return FallbackSplit(dali, FolderSplit(store, indices, form, bad_files), bad_files.notices)
