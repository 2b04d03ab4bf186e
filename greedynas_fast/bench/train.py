"""`bench train`: the training stage as a user runs it, fed from JPEG files, and how long it waits for them.

A supernet of the space `sample` for colour images at 64 pixels, batch 16, uniform paths, one core for everything. The
figures are those of the run's own rows of metrics but the first one of each run: `images_per_s`, and `data_wait`, the
share of the time that training waits for the next batch. Runs of the back ends take turns.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from greedynas_fast.config import ConfigSource
from greedynas_fast.runtime import RunFolder, read_rows
from greedynas_fast.stages.context import Reporter
from greedynas_fast.stages.train import STAGE, train

from . import photographs
from .data import BACKENDS, one_core, open_splits
from .timing import Budget, make_row, quantiles, torch_threads

RESOLUTION, BATCH = 64, 16
_FEW_REPEATS = 3  # up to this many rounds a run is a quick one


class Setting(NamedTuple):
    """How much is measured.

    Attributes:
        files: that are written; three quarters of them are trained on.
        epochs: of a run, with a row of metrics each.
        rounds: runs of each back end, at most.
    """

    files: int
    epochs: int
    rounds: int


SETTING = Setting(256, 6, 3)
QUICK_SETTING = Setting(64, 5, 1)


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `train.sample`, with `data_wait` beside the usual keys."""
    setting = QUICK_SETTING if budget.repeats <= _FEW_REPEATS else SETTING
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), one_core(), _settings_kept():
        size = photographs.write(Path(folder, "data", "train"), setting.files)
        splits, skipped = open_splits(Path(folder, "data"), RESOLUTION)
        found: dict[str, list[dict[str, Any]]] = {provider: [] for provider in splits}
        for turn in range(min(budget.repeats, setting.rounds)):
            for provider, rows in found.items():
                rows += _run(Path(folder, f"{BACKENDS[provider]}-{turn}"), Path(folder, "data"), provider, setting)
    note = f"files of {size / 1e3:.0f} kB, batch {BATCH} at {RESOLUTION}"
    rows = [_row(provider, rows, note) for provider, rows in found.items()]
    return rows + [make_row("train.sample", provider, "-", 1, skipped=why) for provider, why in skipped.items()]


def _row(provider: str, rows: list[dict[str, Any]], note: str) -> dict[str, Any]:
    return make_row(
        "train.sample",
        provider,
        "-",
        1,
        repeats=len(rows),
        paths_per_s=quantiles([row["images_per_s"] for row in rows]),
        data_wait=float(np.median([row["data_wait"] for row in rows])),
        note=note,
    )


def _run(folder: Path, data: Path, provider: str, setting: Setting) -> list[dict[str, Any]]:
    """The step rows of one training in a run folder of its own, without the first."""
    steps = setting.files * 3 // 4 // BATCH
    options: dict[str, object] = {
        "device": "cpu",
        "threads": 1,
        "space.name": "sample",
        "space.resolution": RESOLUTION,
        "space.in_channels": 3,
        "data.root": str(data),
        "data.backend": BACKENDS[provider],
        "data.check_files": "none",
        "train.sampler": "uniform",
        "train.epochs": setting.epochs,
        "train.batch_size": BATCH,
        "train.score_images": BATCH,
        "train.log_every_steps": steps,
        "train.augment.crop": "random_resized",
    }
    with contextlib.redirect_stderr(io.StringIO()):  # its progress
        train(folder, ConfigSource(overrides=options), Reporter(quiet=True))
    return [row for row in read_rows(RunFolder(folder).metrics) if (row["stage"], row["kind"]) == (STAGE, "step")][1:]


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
    """A stage makes torch deterministic; other measurements must not notice."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
