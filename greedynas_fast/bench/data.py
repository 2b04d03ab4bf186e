"""`bench data`: JPEG files decoded, augmented and normalised into batches, by our back ends and by torchvision alone.

Files of about 100 kB and 500x375 pixels, at 224 pixels: RandomResizedCrop, flip, normalise, and the same with
AutoAugment. Everything runs on one core, and a rate is images a second of CPU time, so that other work on the machine
changes it little. The peer is what torch's examples do: ImageFolder and DataLoader, without worker processes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from greedynas_fast.data import Augment, DataConfig, Split, open_data
from greedynas_fast.data.bundle import IMAGENET_MEAN, IMAGENET_STD
from greedynas_fast.errors import InputError

from . import photographs
from .timing import Budget, alternate, make_row, rate_values, torch_threads

RESOLUTION = 224
BACKENDS = {"DALI": "dali", "torch": "torch"}  # provider: data.backend
PEER = "torchvision"
AUGMENTS = {
    "data.crop_flip": Augment(crop="random_resized"),
    "data.autoaugment": Augment(crop="random_resized", auto_augment="autoaugment"),
}
# Of the evaluation images: the mean difference in any one of them, in grey values of 255. Found is 0.17 for DALI, which
# rounds once less when it resizes; images that are shifted by a pixel are 8 apart.
TOLERANCE = 0.5
_FEW_REPEATS = 3  # up to this many rounds a run is a quick one


class Setting(NamedTuple):
    """How much is measured.

    Attributes:
        files: that are written.
        batch: images a batch.
        batches: of one run.
        rounds: at most.
    """

    files: int
    batch: int
    batches: int
    rounds: int


SETTING = Setting(128, 32, 8, 5)
QUICK_SETTING = Setting(40, 20, 2, 3)


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `data.<augmentation>`; the evaluation images are compared first.

    Raises:
        RuntimeError: a back end and torchvision give other evaluation images.
    """
    setting = QUICK_SETTING if budget.repeats <= _FEW_REPEATS else SETTING
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), one_core():
        size = photographs.write(Path(folder, "train"), setting.files)
        splits, skipped = open_splits(Path(folder), RESOLUTION)
        errors = _errors(splits, Path(folder, "train"), setting.batch)
        note = f"files of {size / 1e3:.0f} kB, {photographs.WIDTH}x{photographs.HEIGHT}, at {RESOLUTION}"
        for name, augment in AUGMENTS.items():
            runs = {provider: _ours(split, setting, augment) for provider, split in splits.items()}
            runs[PEER] = _peer(Path(folder, "train"), setting, augment)
            rates = alternate(runs, min(budget.repeats, setting.rounds), clock=time.process_time)
            rows += [
                make_row(
                    name,
                    provider,
                    "-",
                    1,
                    paths=setting.batch * setting.batches,
                    max_error=errors[provider],
                    note=note,
                    **rate_values(rates, provider, PEER),
                )
                for provider in runs
            ]
            rows += [make_row(name, provider, "-", 1, skipped=why) for provider, why in skipped.items()]
    return rows


def open_splits(folder: Path, resolution: int) -> tuple[dict[str, Split], dict[str, str]]:
    """All training images of a data folder in each back end, and why there are none in the others."""
    splits: dict[str, Split] = {}
    skipped: dict[str, str] = {}
    for provider, backend in BACKENDS.items():
        try:
            config = DataConfig(root=str(folder), check_files="none", backend=backend)  # type: ignore[arg-type]
            splits[provider] = open_data(config, resolution=resolution, in_channels=3, seed=0).full_train
        except InputError as error:
            skipped[provider] = str(error).rstrip(".")
    return splits, skipped


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ours(split: Split, setting: Setting, augment: Augment) -> Callable[[], int]:
    starts = count(0, setting.batches)

    def run() -> int:
        batches = split.batches(
            setting.batch, start_step=next(starts), num_steps=setting.batches, seed=0, augment=augment
        )
        return sum(len(labels) for _, labels in batches)

    return run


def _peer(folder: Path, setting: Setting, augment: Augment) -> Callable[[], int]:
    from torchvision import datasets, transforms

    changes = [transforms.RandomResizedCrop(RESOLUTION), transforms.RandomHorizontalFlip()]
    if augment.auto_augment is not None:
        changes.append(transforms.AutoAugment())
    changes += [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    files = datasets.ImageFolder(str(folder), transforms.Compose(changes))
    picked = torch.utils.data.RandomSampler(files, num_samples=setting.batch * setting.batches)
    loader = torch.utils.data.DataLoader(files, batch_size=setting.batch, sampler=picked)
    return lambda: sum(len(labels) for _, labels in loader)


def _peer_evaluation(folder: Path, batch: int) -> Iterable[tuple[Tensor, Tensor]]:
    from torchvision import datasets, transforms

    changes = [transforms.Resize(round(RESOLUTION * 256 / 224)), transforms.CenterCrop(RESOLUTION)]
    changes += [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    loader: Iterable[tuple[Tensor, Tensor]] = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(folder), transforms.Compose(changes)), batch_size=batch
    )
    return loader


def _errors(splits: Mapping[str, Split], folder: Path, batch: int) -> dict[str, float]:
    """The largest mean difference of an evaluation image to torchvision's, of every back end, in grey values.

    Raises:
        RuntimeError: it is above `TOLERANCE`, or the labels differ.
    """
    errors = {PEER: 0.0}
    greys = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * 255
    for provider, split in splits.items():
        errors[provider] = 0.0
        for (found, labels), (wanted, classes) in zip(
            split.sequential(batch), _peer_evaluation(folder, batch), strict=True
        ):
            error = float(((found - wanted) * greys).abs().mean((1, 2, 3)).max())
            if not error <= TOLERANCE or not torch.equal(labels, classes):
                raise RuntimeError(
                    f"data: the evaluation images of {provider} and {PEER} differ by {error:.2g} grey values, more "
                    f"than {TOLERANCE}, or have other labels"
                )
            errors[provider] = max(error, errors[provider])
    return errors
