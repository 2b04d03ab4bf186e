"""idx files: written here by hand, read back, and broken in many ways."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from greedynas_fast.data import DataConfig, open_data
from greedynas_fast.data.idx import read_idx, read_part
from greedynas_fast.errors import InputError


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def write_set(
    folder: Path, labels: list[int], *, parts: tuple[str, ...] = ("train", "t10k"), packed: bool = True
) -> Path:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(labels), 6, 5), dtype=np.uint8)
    for part in parts:
        for name, data in (("images-idx3", idx_bytes(images)), ("labels-idx1", idx_bytes(np.array(labels, np.uint8)))):
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_reads(tmp_path: Path, packed: bool) -> None:
    write_set(tmp_path, [3, 1, 3, 1], packed=packed)
    images, labels = read_part(tmp_path, "train")
    assert images.shape == (4, 6, 5)
    assert labels.tolist() == [3, 1, 3, 1]
    assert np.array_equal(images, np.random.default_rng(0).integers(0, 256, (4, 6, 5), dtype=np.uint8))


def test_open(tmp_path: Path) -> None:
    labels = [7, 2, 4] * 20
    config = DataConfig(root=str(write_set(tmp_path, labels)), validation_size=0.5)
    bundle = open_data(config, resolution=5, in_channels=1, seed=0)
    assert bundle.test is not None
    assert bundle.class_names == ("2", "4", "7")
    assert (len(bundle.train), len(bundle.validation), len(bundle.test)) == (30, 30, 60)
    assert bundle.test.labels.tolist() == [{7: 2, 2: 0, 4: 1}[label] for label in labels]
    images, _ = bundle.full_train.tensors()
    assert images.shape == (60, 1, 5, 5)
    assert abs(images.mean()) < 0.05


def test_open_without_test_part(tmp_path: Path) -> None:
    config = DataConfig(root=str(write_set(tmp_path, [0, 1] * 10, parts=("train",))))
    assert open_data(config, resolution=8, in_channels=3, seed=0).test is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 10, 30, -1])
def test_truncated_file_is_named(tmp_path: Path, packed: bool, keep: int) -> None:
    write_set(tmp_path, [0, 1] * 10, packed=packed)
    path = next(tmp_path.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.*(truncated|cannot be read)"):
        open_data(DataConfig(root=str(tmp_path)), resolution=5, in_channels=1, seed=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\x08\x01" + bytes(20), "3 dimensions .*got 00000801"),
        (b"\0\0\x0d\x03" + bytes(20), "unsigned bytes .*got 00000d03"),
        (b"hello, this is no idx file at all", "expected an idx file"),
        (idx_bytes(np.zeros((2, 3, 4), np.uint8)) + b"x", "trailing bytes: the header promises 24 bytes, 25 follow"),
        (idx_bytes(np.zeros((0, 3, 4), np.uint8)), "0 x 3 x 4: there is nothing in it"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100), "truncated: the header promises 792281624"),
    ],
)
def test_bad_contents(tmp_path: Path, data: bytes, words: str) -> None:
    for name, stored in (("a", data), ("a.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(stored)
        with pytest.raises(InputError, match=words):
            read_idx(tmp_path / name, 3)


def test_damaged_gzip(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8))))
    data[200] ^= 255
    for stored in (bytes(data), b"no gzip at all, but long enough"):
        (tmp_path / "a.gz").write_bytes(stored)
        with pytest.raises(InputError, match=r"a\.gz"):
            read_idx(tmp_path / "a.gz", 3)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    write_set(tmp_path, [0, 1] * 10, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(InputError, match=r"20 images, but .*labels-idx1-ubyte 19 labels"):
        read_part(tmp_path, "train")
    labels.unlink()
    with pytest.raises(
        InputError, match=r"expected train-labels-idx1-ubyte or train-labels-idx1-ubyte\.gz, found neither"
    ):
        read_part(tmp_path, "train")


def test_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two classes, all training labels are 4"):
        open_data(DataConfig(root=str(write_set(tmp_path / "a", [4] * 9))), resolution=5, in_channels=1, seed=0)
    write_set(tmp_path / "b", [0, 1] * 9)
    write_set(tmp_path / "b", [0, 2] * 9, parts=("t10k",))
    with pytest.raises(InputError, match="test label 2 does not occur"):
        open_data(DataConfig(root=str(tmp_path / "b")), resolution=5, in_channels=1, seed=0)


def test_format_idx_without_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found neither"):
        open_data(DataConfig(root=str(tmp_path), format="idx"), resolution=5, in_channels=1, seed=0)
