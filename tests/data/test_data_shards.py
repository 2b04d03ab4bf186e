"""Webdataset shards: the same images as in a folder, layouts, damage."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import write_corpus

from greedynas_fast.data import Augment, DataBundle, DataConfig, open_data
from greedynas_fast.data.files import ImageStore
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.shards import has_shards, open_parts
from greedynas_fast.data.tar import DamagedTarError, Member, members
from greedynas_fast.errors import InputError

MakeImages = Callable[..., Path]
Files = list[tuple[str, bytes]]
CLASSES = ("cat", "dog", "emu")


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def as_samples(folder: Path, label: str = "cls") -> list[Files]:
    """The images of a folder and their labels, one list of files for each sample."""
    samples = []
    for path in sorted(folder.glob("*/*")):
        number = CLASSES.index(path.parent.name)
        text = f"{number}\n" if label == "cls" else json.dumps({"label": number, "text": "ä"})
        stem = f"{path.parent.name}/{path.stem}"
        samples.append([(f"{stem}{path.suffix}", path.read_bytes()), (f"{stem}.{label}", text.encode())])
    return samples


def flat(samples: Iterable[Files]) -> Files:
    return [file for sample in samples for file in sample]


def opened(root: Path, **options: Any) -> DataBundle:
    options = {"backend": "torch"} | options
    return open_data(DataConfig(root=str(root), **options), resolution=8, in_channels=3, seed=0)


def write_shards(root: Path, samples: list[Files], name: str = "{:03d}.tar", each: int = 7) -> None:
    for number, start in enumerate(range(0, len(samples), each)):
        write_tar(root / name.format(number), flat(samples[start : start + each]))


def contents(store: ImageStore) -> list[tuple[str, int, bytes]]:
    return [(store.name(index), int(store.labels[index]), store.read(index)) for index in range(len(store))]


@pytest.mark.parametrize(("backend", "workers"), [("torch", 0), ("torch", 1), ("dali", 1)])
@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_same_batches_as_from_a_folder(
    make_images: MakeImages, tmp_path: Path, label: str, backend: str, workers: int
) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali")
    folder = make_images(suffix="jpg")
    samples = as_samples(folder, label)
    write_shards(tmp_path / "shards", samples)
    (tmp_path / "shards" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    bundle, expected = (opened(root, backend=backend, workers=workers) for root in (tmp_path / "shards", folder))
    assert bundle.class_names == expected.class_names
    assert [name.split(".tar/")[1] for name in bundle.train.names()] == expected.train.names()
    augment = Augment(crop="random_resized", auto_augment="autoaugment", random_erasing=0.5)
    for part, other in ((bundle.train, expected.train), (bundle.test, expected.test)):
        assert part is not None
        assert other is not None
        options: dict[str, Any] = {"start_step": 1, "num_steps": 4, "seed": 3, "augment": augment}
        for mine, theirs in zip(part.batches(5, **options), other.batches(5, **options), strict=True):
            assert torch.equal(mine[0], theirs[0])
            assert torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("layout", ["folders", "names"])
def test_train_and_val(make_images: MakeImages, tmp_path: Path, layout: str) -> None:
    samples = as_samples(make_images())
    root = tmp_path / "set"
    write_shards(root, samples, "train/{:02d}.tar" if layout == "folders" else "imagenet1k-train-{:02d}.tar")
    write_tar(root / ("val/00.tar" if layout == "folders" else "imagenet1k-validation-00.tar"), flat(samples[::3]))
    bundle = opened(root)
    assert bundle.test is not None
    assert bundle.class_names == ("0", "1", "2")  # without classes.txt
    assert (len(bundle.full_train), len(bundle.test)) == (36, 12)
    assert all("val" in name for name in bundle.test.names())
    assert bundle.held_out() == bundle.validation.names()


def test_class_folders_beside_tar_files_are_a_folder_of_images(make_images: MakeImages) -> None:
    root = make_images("set/train").parent
    write_tar(root / "train" / "cat.tar", [("a.jpg", b"")])  # as unpacking ImageNet leaves them
    write_tar(root / "ILSVRC2012_img_train.tar", [("a.jpg", b"")])
    assert not has_shards(root)
    (root / "train" / "cat.tar").unlink()
    assert opened(root).class_names == CLASSES


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_against_tarfile(tmp_path: Path, form: int) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(60):
            kind = rng.choice([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.REGTYPE])
            longest = 90 if form == tarfile.USTAR_FORMAT else 300
            info = tarfile.TarInfo(f"größe {number}/{'x' * rng.randrange(longest)}/{'y' * rng.randrange(80)}.jpg")
            info.type = kind
            info.linkname = "z" * rng.randrange(90) if kind == tarfile.SYMTYPE else ""
            info.size = rng.choice([0, 1, 511, 512, 513, 3000]) if kind == tarfile.REGTYPE else 0
            info.mtime = rng.choice([5, 5.5]) if form == tarfile.PAX_FORMAT else 5
            tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
        assert [(member.name.decode(), member.offset, member.size) for member in members(file)] == expected
    assert len(expected) > 20


def test_large_members(tmp_path: Path) -> None:
    # Over 8 GB: GNU writes the size in binary, pax beside it. The files are sparse.
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path, info = tmp_path / f"{form}.tar", tarfile.TarInfo("a.jpg")
        info.size = 9 << 30
        header = info.tobuf(form)
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + info.size)
        with open(path, "rb") as file:
            assert list(members(file)) == [(b"a.jpg", len(header), info.size)]


def test_every_truncation_is_seen(make_images: MakeImages, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, flat(as_samples(make_images())[:3]))
    whole = path.read_bytes()
    with open(path, "rb") as file:
        found = list(members(file))
    ends = [member.offset + -(-member.size // 512) * 512 for member in found]
    for length in range(1, ends[-1], 97):
        path.write_bytes(whole[:length])
        seen, damaged = read_until_damage(path)
        assert damaged == (length not in ends)
        assert seen == [member for member in found if member.offset + member.size <= length]


def test_damaged_sizes(tmp_path: Path) -> None:
    """Sizes that make no sense, under a header whose sum is right."""
    path, info = tmp_path / "a.tar", tarfile.TarInfo("a.jpg")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for size in (b"-1001\0", b"12x\0", b"+7\0"):
        header[124:136] = size.ljust(12, b" ")
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * ord(" "))
        path.write_bytes(bytes(header))
        assert read_until_damage(path) == ([], True)
    for size in ("x12", "-5", ""):
        info.pax_headers = {"size": size}
        path.write_bytes(info.tobuf(tarfile.PAX_FORMAT))
        assert read_until_damage(path) == ([], True)


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_class_names(make_images: MakeImages, tmp_path: Path, name: str) -> None:
    write_shards(tmp_path / "set", as_samples(make_images()))
    (tmp_path / "set" / name).write_text("crane\ngröße\ncrane\n\n", encoding="utf-8")
    assert opened(tmp_path / "set").class_names == ("crane (0)", "größe", "crane (2)")


def read_until_damage(path: Path) -> tuple[list[Member], bool]:
    seen: list[Member] = []
    with open(path, "rb") as file:
        try:
            seen.extend(members(file))  # what comes before an error is kept
        except DamagedTarError:
            return seen, True
    return seen, False


BAD: dict[str, tuple[Callable[[list[Files]], list[Files]], str, str]] = {
    "no label": (lambda s: [[s[0][0]], *s[1:]], "cat/000", "there is no label beside it"),
    "a text for a label": (lambda s: [[s[0][0], ("cat/000.cls", b"cat")], *s[1:]], "cat/000", "there is no label"),
    "a fraction for a label": (
        lambda s: [[s[0][0], ("cat/000.json", b'{"label": 1.5}')], *s[1:]],
        "cat/000",
        "there is no label",
    ),
    "no image": (lambda s: [[s[0][1]], *s[1:]], "cat/000", "there is no image beside its label"),
    "one key twice": (lambda s: [*s, s[0]], "cat/000", "its key occurs twice in the shard"),
    "two images": (lambda s: [[*s[0], ("cat/000.jpg", b"x")], *s[1:]], "cat/000", "its key occurs twice"),
    "an empty image": (lambda s: [[("cat/000.png", b""), s[0][1]], *s[1:]], "cat/000.png", "it is empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_samples(make_images: MakeImages, tmp_path: Path, kind: str) -> None:
    change, name, reason = BAD[kind]
    path = tmp_path / "set" / "a.tar"
    write_tar(path, flat(change(as_samples(make_images()))))
    with pytest.raises(InputError, match=rf"image file .*a\.tar/{name} cannot be used: {reason}.* Remove it, or set"):
        opened(tmp_path / "set")
    bundle = opened(tmp_path / "set", on_bad_file="skip")
    assert len(bundle.full_train) + len(bundle.test or []) == 35
    assert len(bundle.notices) == 1


def test_truncated_shard(make_images: MakeImages, tmp_path: Path) -> None:
    samples = as_samples(make_images())
    write_shards(tmp_path / "set", samples[::-1], each=12)
    path = tmp_path / "set" / "001.tar"
    path.write_bytes(path.read_bytes()[: 5 * 512 * 5 + 100])
    with pytest.raises(InputError, match=r"image file .*001\.tar cannot be used: the tar file is (truncated|damaged)"):
        opened(tmp_path / "set")
    bundle = opened(tmp_path / "set", on_bad_file="skip", test_size=3)
    assert len(bundle.notices) == 1
    kept = sorted(bundle.full_train.names())
    assert 24 < len(kept) + 3 < 36
    assert bundle.full_train.tensors()[0].isfinite().all()


def test_a_shard_that_shrinks_later(make_images: MakeImages, tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "a.tar", flat(as_samples(make_images())))
    bundle = opened(tmp_path / "set")
    (tmp_path / "set" / "a.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.tar/.*cannot be used: the tar file is truncated"):
        bundle.train.tensors()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no tar", "expected tar files in it or in train/ and val/, found none"),
        ("val alone", "there are validation shards, but no training shards"),
        ("unclear", r'expected "train" or "val" in the name of every tar file, or of none, got \'b\.tar\''),
        ("empty val", r"val: expected tar files, found none"),
        ("one class", "expected at least two classes, found 1"),
        ("short classes.txt", r"cannot|its label 2 is none of the 2 classes"),
        ("long classes.txt", "class 'fox' is listed, but has no training image"),
        ("gap in classes.txt", "expected a name on each line, found an empty one"),
        ("new class in val", "its label 2 is none of the 2 classes"),
        ("no tar file", r"a\.tar cannot be used: it is not a tar file"),
        ("empty", "no usable image in the shards a.tar to a.tar"),
    ],
)
def test_bad_layouts(make_images: MakeImages, tmp_path: Path, kind: str, words: str) -> None:
    samples, root = flat(as_samples(make_images())), tmp_path / "set"
    root.mkdir()
    names = {
        "val alone": "a-val.tar",
        "unclear": "a-train.tar",
        "empty val": "train/a.tar",
        "new class in val": "train.tar",
    }
    taken = {"one class": samples[:24], "empty": [], "new class in val": samples[:48]}
    if kind != "no tar":
        write_tar(root / names.get(kind, "a.tar"), taken.get(kind, samples))
    if kind == "unclear":
        write_tar(root / "b.tar", samples)
    elif kind == "empty val":
        (root / "val").mkdir()
    elif kind == "new class in val":
        write_tar(root / "val.tar", samples)
    elif kind == "no tar file":
        (root / "a.tar").write_bytes(b"x" * 5000)
    elif kind.endswith("classes.txt"):
        text = {"short": "cat\ndog", "long": "cat\ndog\nemu\nfox", "gap": "cat\n\nemu"}[kind.split()[0]]
        (root / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        opened(root, format="shards")


def test_all_kinds_of_files(tmp_path: Path) -> None:
    """The corpus is as good, and as bad, in shards; odd names included."""
    corpus = write_corpus(tmp_path / "files")
    names = [*corpus.pictures, *corpus.dots, *corpus.bad]
    files: Files = []
    for number, name in enumerate(names):
        stem, _, suffix = name.rpartition(".")
        files += [(f"{stem}-{number}.{suffix}", (corpus.root / name).read_bytes())]
        files += [(f"{stem}-{number}.cls", b"%d" % (number % 2)), (f"{stem}-{number}.txt", b"passed over")]
    write_tar(tmp_path / "shards" / "a.tar", files)
    bundle = opened(tmp_path / "shards", on_bad_file="skip", test_size=2)
    assert len(bundle.notices) == len(corpus.bad)
    assert len(bundle.full_train) + 2 == corpus.usable


def test_what_is_read_is_what_was_stored(make_images: MakeImages, tmp_path: Path) -> None:
    samples = as_samples(make_images())
    write_shards(tmp_path / "set", samples)
    store = open_parts(tmp_path / "set", BadFiles("refuse", 0, [])).train
    expected = [
        (str(tmp_path / "set" / f"{number // 7:03d}.tar" / image[0]), int(label[1]), image[1])
        for number, (image, label) in enumerate(samples)
    ]
    assert contents(store) == expected
    kept = store.keep(torch.tensor([30, 2]).numpy())
    assert contents(kept) == [expected[30], expected[2]]
