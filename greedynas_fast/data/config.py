"""What the user says about the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from greedynas_fast.errors import InputError

Format = Literal["auto", "sample", "idx", "folder", "shards"]


@dataclass(frozen=True)
class DataConfig:
    """Where the images are, and how they are divided.

    A size is a number of images, or a fraction (a float between 0 and 1) of what it is taken from.

    Attributes:
        root: a folder of images (`train/<class>/*` and `val/<class>/*`, or `<class>/*`), of webdataset shards
            (`train/*.tar` and `val/*.tar`, or `*train*.tar` and `*val*.tar`, or `*.tar`) or of MNIST-like idx files, or
            null for the embedded sample of Fashion-MNIST.
        format: how to read `root`; `auto` looks.
        validation_size: images held out of the training part, class by class; null takes a quarter, at most 50,000
            (Sec. 5.1). The real test part is never used for decisions.
        test_size: the test part of data that are not divided into train and val.
        train_limit: use at most so many of the training images (validation included), class by class.
        test_limit: use at most so many of the test images, class by class.
        normalisation: `auto` takes fixed numbers (the sample's own; ImageNet's for folders), and computes them for idx
            files; `computed` takes them from the training images (for a folder: from up to 1,000 of them).
        check_files: decode every image file when the folder is opened (`all`), none (`none`), or all in folders of up
            to 2,000 images (`auto`). A bad file that is found later is treated the same way.
        on_bad_file: what a truncated or non-image file does: `refuse` ends the run and names it, `skip` goes on.
        max_bad_files: so many may be skipped; one more ends the run.
        workers: processes that decode image files in the torch back end, 0 for the main process alone; threads that do
            in DALI, where 0 means one. The images are the same.
        backend: what decodes and augments image files: `dali` (NVIDIA DALI; an error where it is missing), `torch`
            (Pillow and torchvision), or `auto`: DALI where it is installed and has the augmentation that is asked for,
            else torch. Crops, flips and all other random decisions are the same in both. Sets that lie in memory (the
            sample, idx files) need neither, and refuse `dali`.
        dali_device: where DALI decodes: `gpu` is the GPU that the run is on, where the batches then stay. Note: `gpu`
            was never run on one yet.
        dali_augment: who carries out `auto_augment` in the DALI back end: `pillow`, in threads on the CPU, for the
            torch back end's pixels; or `dali`, where the images are, by operators of its own, which differ by some grey
            values and take longer on a CPU.
    """

    root: str | None = None
    format: Format = "auto"
    validation_size: int | float | None = None
    test_size: int | float = 0.2
    train_limit: int | None = None
    test_limit: int | None = None
    normalisation: Literal["auto", "computed"] = "auto"
    check_files: Literal["auto", "all", "none"] = "auto"
    on_bad_file: Literal["refuse", "skip"] = "refuse"
    max_bad_files: int = 10
    workers: int = 0
    backend: Literal["auto", "dali", "torch"] = "auto"
    dali_device: Literal["cpu", "gpu"] = "cpu"
    dali_augment: Literal["pillow", "dali"] = "pillow"

    def __post_init__(self) -> None:
        _check_choice("format", self.format, ("auto", "sample", "idx", "folder", "shards"))
        _check_choice("normalisation", self.normalisation, ("auto", "computed"))
        _check_choice("check_files", self.check_files, ("auto", "all", "none"))
        _check_choice("on_bad_file", self.on_bad_file, ("refuse", "skip"))
        _check_choice("backend", self.backend, ("auto", "dali", "torch"))
        _check_choice("dali_device", self.dali_device, ("cpu", "gpu"))
        _check_choice("dali_augment", self.dali_augment, ("pillow", "dali"))
        if self.dali_device == "gpu" and self.backend != "dali":
            raise InputError(f"data.dali_device: gpu needs data.backend dali, got {self.backend}.")
        if self.dali_augment == "dali" and self.backend != "dali":
            raise InputError(f"data.dali_augment: dali needs data.backend dali, got {self.backend}.")
        if self.validation_size is not None:
            _check_size("validation_size", self.validation_size)
        _check_size("test_size", self.test_size)
        for name, low in (
            ("train_limit", 2),
            ("test_limit", 1),
            ("max_bad_files", 0),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"data.{name}: expected at least {low}, got {value}.")
        if self.root == "":
            raise InputError("data.root: expected a folder, or nothing for the embedded sample, got an empty text.")
        if self.root is None and self.format in ("idx", "folder", "shards"):
            raise InputError(f"data.root: expected a folder for the format {self.format}, got nothing.")
        if self.root is not None and self.format == "sample":
            raise InputError(f"data.root: expected nothing for the format sample, got {self.root!r}.")


def resolve_size(name: str, size: int | float, total: int) -> int:
    """The number of images that `size` means out of `total`.

    Raises:
        InputError: it would leave nothing on one of the two sides.
    """
    count = round(size * total) if isinstance(size, float) else size
    if not 0 < count < total:
        raise InputError(f"data.{name}: {size} of {total} images leaves nothing on one side of the split.")
    return count


def _check_size(name: str, size: int | float) -> None:
    if isinstance(size, float) and not 0 < size < 1:
        raise InputError(f"data.{name}: expected a number of images or a fraction between 0 and 1, got {size}.")
    if size <= 0:
        raise InputError(f"data.{name}: expected at least 1 image, got {size}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"data.{name}: expected one of {', '.join(choices)}, got {value!r}.")
