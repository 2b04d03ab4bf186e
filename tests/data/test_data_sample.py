"""The embedded sample: what is in it, how big it is, and that the committed script makes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from greedynas_fast.data import DataConfig, open_data, sample
from greedynas_fast.data.bundle import SAMPLE_MEAN, SAMPLE_STD
from greedynas_fast.data.sample import build
from greedynas_fast.errors import InputError

PACKAGE = Path("/usr/share/datasets/fashion-mnist")


def test_contents() -> None:
    arrays = sample.load()
    assert arrays.train_images.shape == (4000, 28, 28)
    assert arrays.test_images.shape == (1000, 28, 28)
    assert arrays.train_images.dtype == np.uint8
    assert np.bincount(arrays.train_labels).tolist() == [400] * 10
    assert np.bincount(arrays.test_labels).tolist() == [100] * 10
    assert sample.FILE.stat().st_size < 2_500_000
    assert "MIT License" in sample.FILE.with_name("LICENSE").read_text()
    assert len(np.unique(arrays.train_images.reshape(4000, -1), axis=0)) == 4000


def test_constants() -> None:
    pixels = sample.load().train_images / 255
    assert pixels.mean() == pytest.approx(SAMPLE_MEAN, abs=5e-5)
    assert pixels.std() == pytest.approx(SAMPLE_STD, abs=1e-4)


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_script_makes_the_committed_file(tmp_path: Path) -> None:
    build.main(PACKAGE, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as made, np.load(sample.FILE) as committed:
        assert sorted(made) == sorted(committed)
        assert all(np.array_equal(made[name], committed[name]) for name in made)


def test_damaged_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "FILE", tmp_path / "gone.npz")
    with pytest.raises(InputError, match=r"embedded sample .*gone\.npz cannot be read"):
        sample.load()
    (tmp_path / "gone.npz").write_bytes(b"not a zip archive")
    with pytest.raises(InputError, match="Install greedynas_fast again"):
        sample.load()


@pytest.mark.parametrize(("in_channels", "resolution"), [(1, 28), (3, 28), (1, 20), (3, 32)])
def test_open(in_channels: int, resolution: int) -> None:
    config = DataConfig(train_limit=400, validation_size=100, test_limit=50)
    bundle = open_data(config, resolution=resolution, in_channels=in_channels, seed=1)
    assert bundle.test is not None
    parts = (bundle.train, bundle.validation, bundle.test, bundle.full_train)
    assert [len(part) for part in parts] == [300, 100, 50, 400]
    assert bundle.num_classes == 10
    assert bundle.class_names[:2] == ("T-shirt/top", "Trouser")
    assert bundle.notices == []
    images, labels = bundle.validation.tensors()
    assert images.shape == (100, in_channels, resolution, resolution)
    assert np.bincount(labels).tolist() == [10] * 10
    assert len(bundle.mean) == len(bundle.std) == in_channels
    assert abs(images.mean()) < 0.15
    assert abs(images.std() - 1) < 0.15


def test_grey_to_rgb_is_three_times_the_same() -> None:
    config = DataConfig(train_limit=50, validation_size=10)
    grey, _ = open_data(config, resolution=28, in_channels=1, seed=0).train.tensors()
    colour, _ = open_data(config, resolution=28, in_channels=3, seed=0).train.tensors()
    assert all((colour[:, channel] == grey[:, 0]).all() for channel in range(3))


def test_labels_belong_to_their_images() -> None:
    arrays = sample.load()
    by_pixels = {
        image.tobytes(): int(label) for image, label in zip(arrays.train_images, arrays.train_labels, strict=True)
    }
    bundle = open_data(DataConfig(), resolution=28, in_channels=1, seed=3)
    images, labels = bundle.validation.tensors()
    pixels = ((images[:, 0] * SAMPLE_STD + SAMPLE_MEAN) * 255).round().to(torch.uint8).numpy()
    assert [by_pixels[image.tobytes()] for image in pixels] == labels.tolist()


def test_import_is_light() -> None:
    code = (
        "import sys; from greedynas_fast.data import DataConfig, open_data\n"
        "open_data(DataConfig(), resolution=28, in_channels=1, seed=0).validation.tensors()\n"
        "heavy = {'PIL', 'torchvision'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
