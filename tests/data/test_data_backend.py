"""The choice between DALI and torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from greedynas_fast.data import Augment, DataBundle, DataConfig, open_data
from greedynas_fast.data import backend as backend_module
from greedynas_fast.data import jpeg as jpeg_module
from greedynas_fast.errors import InputError

MakeImages = Callable[..., Path]


def opened(root: Path | None, backend: str, **options: Any) -> DataBundle:
    config = DataConfig(root=None if root is None else str(root), backend=backend, **options)  # type: ignore[arg-type]
    return open_data(config, resolution=8, in_channels=3, seed=0)


@pytest.fixture
def no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # importing it fails


@pytest.mark.usefixtures("no_dali")
def test_without_dali(make_images: MakeImages) -> None:
    root = make_images()
    bundle = opened(root, "auto")
    assert bundle.backend.startswith("torch: torchvision and Pillow decode the image files; there is no DALI (")
    assert torch.equal(bundle.train.tensors()[0], opened(root, "torch").train.tensors()[0])
    with pytest.raises(InputError, match=r"^data\.backend: dali cannot be used: .*pip install 'greedynas_fast\[dali"):
        opened(root, "dali")


def test_a_torchvision_without_decoders(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_images()
    wanted = opened(root, "torch").train.tensors()[0]
    for module in (backend_module, jpeg_module):
        monkeypatch.setattr(module, "torchvision_decoder", lambda: None)
    bundle = opened(root, "torch")
    assert bundle.backend.startswith("torch: Pillow decodes the image files (this torchvision has no decode_jpeg")
    assert torch.equal(bundle.train.tensors()[0], wanted)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_memory_needs_neither(backend: str) -> None:
    assert opened(None, backend).backend == "torch: the images lie in memory, so there are no files to decode."
    with pytest.raises(InputError, match=r"data\.backend: dali decodes image files, but the images .* lie in memory"):
        opened(None, "dali")


def test_torch_as_said(make_images: MakeImages) -> None:
    assert opened(make_images(), "torch").backend.endswith("as data.backend says.")


def test_decoding_on_a_gpu_needs_one(make_images: MakeImages) -> None:
    with pytest.raises(InputError, match=r"^data\.dali_device: gpu needs data\.backend dali, got auto\.$"):
        opened(make_images(), "auto", dali_device="gpu")
    with pytest.raises(InputError, match=r"^data\.dali_device: gpu needs a run on a GPU, but this one is on"):
        opened(make_images(), "dali", dali_device="gpu")


def test_dalis_own_changes_need_dali(make_images: MakeImages) -> None:
    with pytest.raises(InputError, match=r"^data\.dali_augment: dali needs data\.backend dali, got auto\.$"):
        opened(make_images(), "auto", dali_augment="dali")
    with pytest.raises(InputError, match=r"^data\.dali_augment: expected one of pillow, dali, got 'torch'\.$"):
        opened(make_images(), "dali", dali_augment="torch")


def test_who_changes_images(make_images: MakeImages) -> None:
    pytest.importorskip("nvidia.dali")
    root = make_images(suffix="jpg", size=(40, 30))
    augment = Augment(crop="none", flip=False, auto_augment="randaugment")
    batches = [
        next(opened(root, "dali", **options).train.batches(4, start_step=0, num_steps=1, seed=0, augment=augment))
        for options in ({}, {"dali_augment": "pillow"}, {"dali_augment": "dali"})
    ]
    assert torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], batches[2][0])
    assert torch.equal(batches[0][1], batches[2][1])


@pytest.mark.parametrize("backend", ["auto", "dali"])
def test_with_dali(make_images: MakeImages, backend: str) -> None:
    pytest.importorskip("nvidia.dali")
    root = make_images(suffix="jpg", size=(40, 30))
    bundle, other = opened(root, backend), opened(root, "torch")
    assert bundle.backend.startswith("dali: NVIDIA DALI 2")
    for part, theirs in ((bundle.train, other.train), (bundle.validation, other.validation), (bundle.test, other.test)):
        assert part is not None
        assert theirs is not None
        assert part.names() == theirs.names()
        assert part.labels.tolist() == theirs.labels.tolist()
        mine, expected = part.tensors()[0], theirs.tensors()[0]
        assert (mine - expected).abs().mean() < 0.02  # of values up to 2.5: two decoders round differently
        assert not torch.equal(mine, expected)  # so it was DALI
    measured = [opened(root, kind, normalisation="computed").mean for kind in (backend, "torch")]
    assert measured[0] == measured[1]


def test_augmix_falls_back_to_torch_and_says_so_once(make_images: MakeImages) -> None:
    pytest.importorskip("nvidia.dali")
    root = make_images(suffix="jpg", size=(40, 30))
    bundle, other = opened(root, "auto"), opened(root, "torch")
    options: dict[str, Any] = {"start_step": 1, "num_steps": 2, "seed": 3, "augment": Augment(auto_augment="augmix")}
    for _ in range(2):
        for mine, theirs in zip(bundle.train.batches(6, **options), other.train.batches(6, **options), strict=True):
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[1], theirs[1])
    assert bundle.notices == ["DALI does not have augment.auto_augment = augmix: torch reads the training images."]
    with pytest.raises(InputError, match=r"augment\.auto_augment: DALI does not have augmix"):
        opened(root, "dali").train.batches(6, **options)


def test_held_out_images(make_images: MakeImages) -> None:
    bundle = opened(make_images(), "torch", validation_size=6)
    assert len(set(bundle.held_out())) == 6
    assert set(bundle.held_out()) | set(bundle.train.names()) == set(bundle.full_train.names())
    assert all((make_images() / name).is_file() for name in bundle.held_out())
    sample = opened(None, "auto", validation_size=20)
    indices = [int(name) for name in sample.held_out()]
    assert len(set(indices)) == 20
    assert sorted(indices + [int(name) for name in sample.train.names()]) == list(range(4000))
