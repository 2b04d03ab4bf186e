"""The paper's preset on a folder with the shape of ImageNet: 1,000 classes of JPEGs of about 100 KB."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from greedynas_fast.cli import main

CLASSES, IMAGES_A_CLASS, PHOTOGRAPHS = 1000, 5, 50


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 pixels that is as hard to compress as a photograph: noise on all scales."""
    pixels = np.full((375, 500, 3), 128.0)
    for scale in (4, 16, 64, 256):
        coarse = rng.normal(0, 40, (375 // scale + 2, 500 // scale + 2, 3)).clip(-100, 100)
        layer = Image.fromarray((coarse + 128).astype(np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer, dtype=np.float64) - 128
    pixels += rng.normal(0, 6, pixels.shape)
    stored = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=92)
    return stored.getvalue()


def write_folder(root: Path) -> int:
    """`train/` and `val/` with one file and some files a class; the mean number of bytes of a file."""
    rng = np.random.default_rng(0)
    photographs = [photograph(rng) for _ in range(PHOTOGRAPHS)]
    for label in range(CLASSES):
        for part, count in (("train", IMAGES_A_CLASS), ("val", 1)):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index}.JPEG").write_bytes(photographs[(label + 7 * index) % PHOTOGRAPHS])
    return sum(map(len, photographs)) // PHOTOGRAPHS


@pytest.mark.slow
def test_the_mobile_preset_trains_on_the_shape_of_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that the preset does, with fewer images: steps before and after filters, merged operations, profile."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    assert 60_000 < write_folder(tmp_path / "images") < 160_000
    monkeypatch.chdir(tmp_path)
    options = {
        "space.resolution": 96,  # of 224: a fifth of the time
        "data.validation_size": 4000,
        "data.backend": "dali",
        "data.workers": 2,
        "train.epochs": 3,
        "train.batch_size": 80,  # of 1,000 images: 12 steps an epoch
        "train.micro_batch": 40,
        "train.warmup_epochs": 1,
        "train.update_every_epochs": 1,
        "train.q_epochs": 2,
        "train.merge_threshold": 0.0,  # a filter of 20 steps has found no two operations alike
        "train.score_paths": 6,
        "train.score_images": 16,
        "train.agreement_paths": 500,
        "train.stop_on": "never",
        "train.precision": "bf16",
        "train.ema_decay": 0.9,
        "train.augment.auto_augment": "autoaugment",
        "train.augment.random_erasing": 0.2,
        "train.checkpoint_every_steps": 10,
        "train.log_every_steps": 4,
        "filter.steps": 20,
        "filter.min_spread": 0.0,
        "profile": 2,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = ["train", "--preset", "imagenet-mobile", "--data", "images", "--run", "run", *words]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 36
    assert result["updates"] == 3
    assert result["removed_operations"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "step"]
    assert len(losses) == 9
    # A network that knows nothing of 1,000 classes has a loss of about ln(1000) = 6.9.
    assert all(6 < loss < 9 for loss in losses)
    assert len((tmp_path / "run/held_out.txt").read_text().splitlines()) == 4000
    assert json.loads((tmp_path / "run/profile/train.json").read_text())["traceEvents"]
