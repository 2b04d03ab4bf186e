"""Folders of images: layouts, bad input, transforms, workers, bad files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from greedynas_fast.data import Augment, DataBundle, DataConfig, Split, open_data
from greedynas_fast.data.folder_split import FolderSplit
from greedynas_fast.errors import InputError

MakeImages = Callable[..., Path]
# Python 3.12 and later warn about forking a process with threads, which torch's data loader does.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def opened(root: Path, *, resolution: int = 8, in_channels: int = 3, seed: int = 0, **options: Any) -> DataBundle:
    options = {"backend": "torch"} | options
    return open_data(DataConfig(root=str(root), **options), resolution=resolution, in_channels=in_channels, seed=seed)


def names(split: Split) -> list[str]:
    return [str(split._files.root / name) for name in split.names()]  # type: ignore[attr-defined]


def load(split: Split, size: int, start: int, num: int, augment: Augment | None = None) -> list[Any]:
    return list(split.batches(size, start_step=start, num_steps=num, seed=3, augment=augment or Augment.none()))


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True)
    )


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def test_train_and_val(make_images: MakeImages, tmp_path: Path) -> None:
    counts = {"n02": 10, "n01": 20}
    make_images("set/train", counts, suffix="JPEG")
    make_images("set/val", {"n01": 3, "n02": 3}, suffix="JPEG")
    bundle = opened(tmp_path / "set", validation_size=6)
    assert bundle.test is not None
    assert bundle.class_names == ("n01", "n02")
    assert bundle.num_classes == 2
    assert (len(bundle.train), len(bundle.validation), len(bundle.test)) == (24, 6, 6)
    assert np.bincount(bundle.validation.labels).tolist() == [4, 2]
    assert all("/val/" in name for name in names(bundle.test))
    assert all("/train/" in name for name in names(bundle.full_train))
    assert not set(names(bundle.train)) & set(names(bundle.validation))
    assert [f"n0{label + 1}" for label in bundle.test.labels] == [Path(name).parent.name for name in names(bundle.test)]
    images, labels = next(bundle.test.sequential(4))
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [0, 0, 0, 1]


def test_train_alone_has_no_test_part(make_images: MakeImages, tmp_path: Path) -> None:
    make_images("set/train")
    assert opened(tmp_path / "set").test is None


def test_one_folder_is_divided(make_images: MakeImages) -> None:
    root = make_images(counts={"a": 20, "b": 10})
    bundle = opened(root, test_size=0.3, validation_size=0.5)
    assert bundle.test is not None
    assert np.bincount(bundle.test.labels).tolist() == [6, 3]
    parts = [set(names(part)) for part in (bundle.train, bundle.validation, bundle.test)]
    assert [len(part) for part in parts] == [11, 10, 9]
    assert len(parts[0] | parts[1] | parts[2]) == 30
    again, other = opened(root, test_size=0.3), opened(root, test_size=0.3, seed=1)
    assert again.test is not None
    assert other.test is not None
    assert set(names(again.test)) == parts[2]
    assert set(names(other.test)) != parts[2]


def test_sub_folders_and_hidden_files(make_images: MakeImages, tmp_path: Path) -> None:
    make_images("set/a", {"images": 4, "more": 4})
    make_images("set/b", {"images": 8})
    (tmp_path / "set" / ".git").mkdir()
    (tmp_path / "set" / "a" / ".DS_Store").write_text("x")
    bundle = opened(tmp_path / "set")
    assert bundle.class_names == ("a", "b")
    assert len(bundle.full_train) + len(bundle.test or []) == 16


def test_names_that_are_not_utf8(make_images: MakeImages) -> None:
    root = make_images()
    os.rename(root / "cat" / "000.png", os.fsencode(root / "cat") + b"/\xff\xfe.png")
    bundle = opened(root, test_size=3)
    assert len(bundle.full_train.tensors()[1]) == 33
    assert bundle.test is not None
    named = [*bundle.full_train.names(), *bundle.test.names()]
    assert r"cat/\xff\xfe.png" in named
    "".join(named).encode()  # can be written
    (root / "cat" / os.fsdecode(b"\xff.txt")).write_text("x")
    (notice,) = opened(root, on_bad_file="skip").notices
    assert r"cat/\xff.txt cannot be used" in notice


@pytest.mark.parametrize(
    "kind", ["no folders", "one class", "empty class", "only text", "val alone", "new class in val"]
)
def test_bad_layouts(make_images: MakeImages, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "images"
    if kind == "no folders":
        root.mkdir()
        (root / "a.jpg").write_text("x")
        words = "expected one sub-folder a class, found none"
    elif kind == "one class":
        make_images(counts={"cat": 3})
        words = "expected at least two class folders, found only 'cat'"
    elif kind == "empty class":
        make_images()
        (root / "fox").mkdir()
        words = r"class folder .*fox: no images in it"
    elif kind == "only text":
        make_images()
        (root / "fox").mkdir()
        (root / "fox" / "a.txt").write_text("x")
        words = r"image file .*fox/a\.txt cannot be used: its name does not end like an image's"
    elif kind == "val alone":
        make_images("images/val")
        words = r"there is a val/ folder, but no train/"
    else:
        make_images("images/train")
        make_images("images/val", {"cat": 2, "fox": 2})
        words = r"the class 'fox' does not occur among the training images"
    with pytest.raises(InputError, match=words):
        opened(root)


def test_unreadable_folder(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated: root may read anything.
    root, real = make_images(), os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"folder .*dog: cannot be read \(Permission denied\)"):
        opened(root)


def expected_image(path: str, resolution: int, mode: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The evaluation transform in Pillow and plain slices."""
    image = Image.open(path).convert(mode)
    short = round(resolution * 256 / 224)
    width, height = image.size
    size = (short * width // height, short) if width > height else (short, short * height // width)
    pixels = np.array(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)
    top, left = (round((length - resolution) / 2) for length in pixels.shape[:2])
    return pixels[top : top + resolution, left : left + resolution].reshape(resolution, resolution, -1) / 255


@pytest.mark.parametrize(("in_channels", "mode"), [(3, "RGB"), (1, "L")])
@pytest.mark.parametrize("size", [(20, 14), (9, 31), (64, 64)])
def test_evaluation_transform(make_images: MakeImages, in_channels: int, mode: str, size: tuple[int, int]) -> None:
    bundle = opened(make_images(size=size), resolution=14, in_channels=in_channels)
    images, _ = bundle.train.tensors()
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if in_channels == 3 else ((0.459,), (0.226,))
    for image, name in zip(images, names(bundle.train), strict=True):
        expected = (expected_image(name, 14, mode) - np.array(mean)) / np.array(std)
        # In grey values: torch's resizing rounds as Pillow's, but for a few values in a hundred.
        away = np.abs(image.permute(1, 2, 0).numpy() - expected) * std * 255
        assert away.max() < 1.01
        assert away.mean() < 0.05


def test_grey_files_become_rgb(make_images: MakeImages) -> None:
    images, _ = opened(make_images(grey=True), normalisation="computed").train.tensors()
    assert torch.equal(images[:, 0], images[:, 1])


def test_palette_and_transparency(make_images: MakeImages) -> None:
    root = make_images()
    for number, name in enumerate(["cat/000.png", "cat/001.png", "dog/000.png"]):
        image = Image.open(root / name)
        if number == 0:
            image.quantize(16).save(root / name, transparency=bytes(range(16)))
        else:
            image.convert("RGBA" if number == 1 else "CMYK").save(root / name, "PNG" if number == 1 else "TIFF")
    assert torch.isfinite(opened(root).full_train.tensors()[0]).all()


def test_computed_normalisation(make_images: MakeImages) -> None:
    images, _ = opened(make_images(size=(8, 8)), normalisation="computed", test_size=2).full_train.tensors()
    # Measured on all images, of which two are in the test part.
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05


AUGMENTS = [
    Augment(crop="random_resized", auto_augment="autoaugment", random_erasing=0.5),
    Augment(crop="pad", pad=2, auto_augment="randaugment"),
    Augment(crop="none", flip=True),
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_any_start_and_any_batch_maker_give_the_same(make_images: MakeImages, augment: Augment) -> None:
    split = opened(make_images()).train
    before = torch.get_rng_state()
    whole = load(split, 5, 0, 9, augment)
    assert torch.equal(before, torch.get_rng_state())
    assert same(whole[4:], load(split, 5, 4, 5, augment))
    assert not same(whole[:4], load(split, 5, 4, 4, augment))
    plain = load(split, 5, 0, 9)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(whole, plain, strict=True))
    assert (
        sum(not torch.equal(a, b) for x, y in zip(whole, plain, strict=True) for a, b in zip(x[0], y[0], strict=True))
        > 20
    )
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)


def test_workers_change_nothing(make_images: MakeImages) -> None:
    root = make_images()
    augment = AUGMENTS[0]
    alone, helped = opened(root).train, opened(root, workers=2).train
    assert same(load(alone, 4, 1, 8, augment), load(helped, 4, 1, 8, augment))
    assert same(list(alone.sequential(5)), list(helped.sequential(5)))
    state = torch.get_rng_state()
    iterator = helped.batches(4, start_step=0, num_steps=50, seed=0, augment=augment)
    next(iterator)  # and given up early
    del iterator
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("augment", AUGMENTS)
def test_rows_of_the_ranks_make_up_the_batch(make_images: MakeImages, augment: Augment) -> None:
    split = opened(make_images()).train
    options: dict[str, Any] = {"start_step": 2, "num_steps": 3, "seed": 3, "augment": augment}
    parts = [list(split.batches(7, rank=rank, num_ranks=3, **options)) for rank in range(3)]
    together = [tuple(torch.cat(tensors) for tensors in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    assert same(together, list(split.batches(7, **options)))


def make_bad(root: Path) -> dict[str, Path]:
    """A truncated JPEG, a text that is called .jpg, an empty file, floats, a text."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / "cat" / "a.jpg")
    (root / "cat" / "b.jpg").write_text("this is a text, not an image\n" * 20)
    (root / "dog" / "c.png").write_bytes(b"")
    Image.fromarray(rng.random((9, 9), dtype=np.float32)).save(root / "dog" / "d.tif")
    (root / "emu" / "e.txt").write_text("notes")
    truncate(root / "cat" / "a.jpg")
    files = {letter: next(root.rglob(f"{letter}.*")) for letter in "abcde"}
    assert len(files) == 5
    return files


@pytest.mark.parametrize(
    ("letter", "words"),
    [
        ("a", "truncated"),
        ("b", "it is not an image"),
        ("c", "it is empty"),
        ("d", "expected 8 or 16 bits a channel, got an image of mode F"),
        ("e", "its name does not end like an image's"),
    ],
)
@pytest.mark.parametrize(("check_files", "workers"), [("all", 0), ("none", 0), ("none", 1)])
def test_a_bad_file_is_refused(
    make_images: MakeImages, letter: str, words: str, check_files: str, workers: int
) -> None:
    root = make_images()
    for other, path in make_bad(root).items():
        if other != letter:
            path.unlink()

    def use() -> None:
        bundle = opened(root, check_files=check_files, workers=workers)
        for part in (bundle.train, bundle.validation, bundle.test):
            assert part is not None
            list(part.sequential(7))

    pattern = (
        rf"^image file .*/{letter}\.\w+ cannot be used: .*{words}.*\. Remove it, or set data\.on_bad_file to skip\.$"
    )
    with pytest.raises(InputError, match=pattern):
        use()


def test_bad_files_are_skipped_up_to_the_limit(make_images: MakeImages) -> None:
    root = make_images()
    bad = make_bad(root)
    bundle = opened(root, on_bad_file="skip", max_bad_files=5)
    assert len(bundle.notices) == 5
    assert all(any(str(path) in notice for notice in bundle.notices) for path in bad.values())
    assert bundle.test is not None
    assert len(bundle.full_train) + len(bundle.test) == 36
    with pytest.raises(InputError, match=r"More than data\.max_bad_files = 4 files are bad"):
        opened(root, on_bad_file="skip", max_bad_files=4)


def test_a_class_without_a_good_file(make_images: MakeImages) -> None:
    root = make_images(counts={"cat": 9, "dog": 2}, suffix="jpg", size=(40, 40))
    for path in (root / "dog").iterdir():
        truncate(path)
    with pytest.raises(InputError, match=r"class 'dog': no usable image in it"):
        opened(root, on_bad_file="skip")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_found_bad_late_is_replaced(make_images: MakeImages, workers: int) -> None:
    root = make_images(suffix="jpg", size=(40, 40))
    options = {"on_bad_file": "skip", "check_files": "none", "workers": workers}
    good = opened(root, **options).train
    before = load(good, 6, 0, 8, AUGMENTS[0])
    victims = sorted(names(good))[:2]  # two neighbours of one class
    for victim in victims:
        truncate(Path(victim))
    bundle = opened(root, **options)
    assert names(bundle.train) == names(good)
    after = load(bundle.train, 6, 0, 8, AUGMENTS[0])
    assert sorted(n.split()[3] for n in bundle.notices) == victims  # each named once
    # The rest of every batch stays what it was, labels included; going on from the middle is exact.
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))
    changed = sum(
        not torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x[0], y[0], strict=True)
    )
    assert 0 < changed <= 2 * 3
    assert same(after[3:], load(bundle.train, 6, 3, 5, AUGMENTS[0]))
    # In place of the two stands the next good file of their class in the same part.
    mine = names(bundle.train)
    images, _ = bundle.train.tensors()
    of_class = [name for name in mine if Path(name).parent == Path(victims[0]).parent]
    substitute = of_class[max(of_class.index(victim) for victim in victims) + 1]
    for victim in victims:
        assert torch.equal(images[mine.index(victim)], images[mine.index(substitute)])


def test_late_bad_files_over_the_limit(make_images: MakeImages) -> None:
    root = make_images(suffix="jpg", size=(40, 40))
    for number in range(3):
        truncate(root / "cat" / f"{number:03d}.jpg")
    bundle = opened(root, on_bad_file="skip", check_files="none", max_bad_files=2, test_size=1)
    with pytest.raises(InputError, match=r"More than data\.max_bad_files = 2"):
        list(bundle.full_train.sequential(36))


def test_no_file_left_to_replace_one(make_images: MakeImages) -> None:
    root = make_images(counts={"cat": 3, "dog": 8}, suffix="jpg", size=(40, 40))
    bundle = opened(root, on_bad_file="skip", check_files="none", test_size=1)
    for path in (root / "cat").iterdir():
        truncate(path)
    with pytest.raises(InputError, match="a class has no usable image left"):
        list(bundle.full_train.sequential(8))


def test_images_are_not_held_in_memory(make_images: MakeImages) -> None:
    split = opened(make_images()).train
    assert isinstance(split, FolderSplit)
    tensors = [value for value in vars(split._files).values() if isinstance(value, (np.ndarray, torch.Tensor))]
    assert sum(value.nbytes for value in tensors) < 100 * len(split._files)


def test_root_that_may_not_be_entered(make_images: MakeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated: root may enter anything.
    root = make_images()

    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match=r"data folder .*images: expected a folder, there is none"):
        opened(root)
