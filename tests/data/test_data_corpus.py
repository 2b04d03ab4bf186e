"""Image files of every kind, read by the torch back end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus import Corpus, picture, write_corpus
from PIL import Image, ImageOps

from greedynas_fast.data import Augment, DataConfig, open_data
from greedynas_fast.data.images import BadFileError, decode
from greedynas_fast.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "all kinds, größe")


def config(corpus: Corpus, **options: object) -> DataConfig:
    return DataConfig(root=str(corpus.root), backend="torch", test_size=2, **options)  # type: ignore[arg-type]


def distance(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize(("in_channels", "mode"), [(3, "RGB"), (1, "L")])
def test_usable_files_show_the_picture(corpus: Corpus, in_channels: int, mode: str) -> None:
    # A picture that is turned in any way is far from itself, so the limit below tells.
    assert distance(picture(), ImageOps.mirror(picture())) > 20
    for name, kind in corpus.pictures.items():
        image = decode((corpus.root / name).read_bytes(), name, in_channels)
        assert image.mode == mode, name
        assert image.size == picture().size, name
        assert distance(image, picture("L" if kind == "L" else mode).convert(mode)) < 8, name
    for name in corpus.dots:
        assert decode((corpus.root / name).read_bytes(), name, in_channels).size == (1, 1)


def test_orientation_is_pillows(corpus: Corpus) -> None:
    turned = sorted((corpus.root / "dog").glob("turned*"))
    assert len(turned) == 8
    for path in turned:
        expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert distance(decode(path.read_bytes(), path.name, 3), expected) == 0


def test_16_bits_keep_the_upper_8(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for suffix in ("png", "tif", "pgm"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(values).save(path)
        np.testing.assert_array_equal(np.asarray(decode(path.read_bytes(), path.name, 1)), values >> 8)


def test_bad_files_say_why(corpus: Corpus) -> None:
    for name, reason in corpus.bad.items():
        with pytest.raises(BadFileError, match=reason):
            decode((corpus.root / name).read_bytes(), name, 3)
    with pytest.raises(BadFileError, match=r"does not end like an image's \(\.txt\)"):
        decode((corpus.root / "cat/plain.jpg").read_bytes(), "a.txt", 3)


def test_formats_that_run_other_programs_are_refused() -> None:
    with pytest.raises(BadFileError, match="it is not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "a.jpg", 3)


@pytest.mark.parametrize("check_files", ["all", "none"])
def test_training_on_all_kinds(corpus: Corpus, check_files: str) -> None:
    bundle = open_data(
        config(corpus, on_bad_file="skip", check_files=check_files), resolution=16, in_channels=3, seed=0
    )
    assert bundle.test is not None
    augment = Augment(crop="random_resized", auto_augment="autoaugment", random_erasing=0.2)
    count = len(bundle.full_train)
    images, labels = next(bundle.full_train.batches(count, start_step=0, num_steps=1, seed=0, augment=augment))
    assert images.isfinite().all()
    assert len(labels) == count
    list(bundle.full_train.sequential(7))
    list(bundle.test.sequential(7))
    assert count + len(bundle.test) == corpus.usable + (0 if check_files == "all" else len(corpus.bad))
    for name in corpus.bad:
        assert sum(str(corpus.root / name) in notice for notice in bundle.notices) == 1
    assert len(bundle.notices) == len(corpus.bad)


def test_a_limit_below_the_bad_files_ends_the_run(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"More than data\.max_bad_files = 4 files are bad"):
        open_data(config(corpus, on_bad_file="skip", max_bad_files=4), resolution=16, in_channels=3, seed=0)
