"""`bench data` and `bench train`: the files, the rows, and what they refuse."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from bench_budget import TINY

from greedynas_fast.bench import data, photographs, train
from greedynas_fast.data import Split
from greedynas_fast.errors import InputError

HAS_DALI = False
try:
    import nvidia.dali  # noqa: F401

    HAS_DALI = True
except ImportError:
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(data, "QUICK_SETTING", data.Setting(files=8, batch=4, batches=1, rounds=2))
    monkeypatch.setattr(data, "RESOLUTION", 64)
    monkeypatch.setattr(train, "QUICK_SETTING", train.Setting(files=24, epochs=2, rounds=1))


def test_files(tmp_path: Path) -> None:
    size = photographs.write(tmp_path, 20)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert [file.relative_to(tmp_path).as_posix() for file in files[:2]] == ["class0/0000.jpg", "class0/0004.jpg"]
    assert size == sum(file.stat().st_size for file in files) / 20
    assert 80_000 < size < 120_000
    sizes = [_size(file) for file in files]
    assert sizes.count((500, 375)) == 16
    assert sizes.count((375, 500)) == 4
    assert len({file.read_bytes() for file in files}) == 20
    photographs.write(tmp_path / "again", 2)
    assert (tmp_path / "again/class1/0001.jpg").read_bytes() == (tmp_path / "class1/0001.jpg").read_bytes()


def _size(file: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(file) as image:
        return image.size


def test_rows_of_data() -> None:
    cores = os.sched_getaffinity(0)
    rows = data.measure(TINY)
    assert os.sched_getaffinity(0) == cores
    providers = ["DALI", "torch", "torchvision"] if HAS_DALI else ["torch", "torchvision", "DALI"]
    names = ["data.crop_flip", "data.autoaugment"]
    assert [(row["name"], row["provider"]) for row in rows] == [(name, each) for name in names for each in providers]
    for row in rows:
        if row["skipped"] is not None:
            assert row["provider"] == "DALI"
            continue
        assert (row["threads"], row["repeats"], row["paths"], row["peer"]) == (1, 2, 4, "torchvision")
        assert row["paths_per_s"]["p50"] > 0
        assert 0 <= row["max_error"] < {"DALI": data.TOLERANCE, "torch": 1e-2, "torchvision": 1e-9}[row["provider"]]


@pytest.mark.skipif(not HAS_DALI, reason="NVIDIA DALI is optional")
def test_dali_is_dali(tmp_path: Path) -> None:
    from greedynas_fast.data.dali import DaliSplit

    photographs.write(tmp_path / "train", 8)
    splits, skipped = data.open_splits(tmp_path, 32)
    assert skipped == {}
    assert isinstance(splits["DALI"], DaliSplit)
    assert not isinstance(splits["torch"], DaliSplit)


def test_a_missing_back_end_is_a_skipped_row(monkeypatch: pytest.MonkeyPatch) -> None:
    original = data.open_data

    def without(config, **options):
        if config.backend == "dali":
            raise InputError("data.backend: dali cannot be used: it is not here.")
        return original(config, **options)

    monkeypatch.setattr(data, "open_data", without)
    for rows in (data.measure(TINY), train.measure(TINY)):
        skipped = [row for row in rows if row["provider"] == "DALI"]
        assert {row["skipped"] for row in skipped} == {"data.backend: dali cannot be used: it is not here"}
        assert all(row["paths_per_s"] is None for row in skipped)
        assert any(row["provider"] == "torch" and row["paths_per_s"] for row in rows)


@pytest.mark.parametrize("wrong", ["pixels", "labels"])
def test_refuses_other_evaluation_images(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    original = Split.sequential

    def spoilt(self: Split, batch_size: int):
        for images, labels in original(self, batch_size):
            yield (images.roll(1, dims=3), labels) if wrong == "pixels" else (images, labels.flip(0))

    monkeypatch.setattr(Split, "sequential", spoilt)
    with pytest.raises(RuntimeError, match=r"data: the evaluation images of \w+ and torchvision differ by"):
        data.measure(TINY)


def test_rows_of_train() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    rows = train.measure(TINY)
    assert torch.are_deterministic_algorithms_enabled() == before
    assert [row["provider"] for row in rows] == ["DALI", "torch"] if HAS_DALI else ["torch", "DALI"]
    for row in rows:
        assert row["name"] == "train.sample"
        if row["skipped"] is None:
            assert row["repeats"] == 1  # the first row of a run does not count
            assert row["paths_per_s"]["p50"] > 0
            assert 0 < row["data_wait"] < 1


def test_clock_of_the_processor() -> None:
    rates = data.alternate({"asleep": lambda: time.sleep(0.05) or 1}, 1, clock=time.process_time)
    assert rates["asleep"][0] > 1 / 0.05
