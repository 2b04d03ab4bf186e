"""Image files of every kind, good and bad, come out of the DALI back end as out of the torch back end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus import Corpus, write_corpus
from torch import Tensor

from greedynas_fast.data import Augment
from greedynas_fast.data.dali import DaliSplit
from greedynas_fast.data.folder import scan
from greedynas_fast.data.folder_split import FolderFormat, FolderSplit
from greedynas_fast.data.images import BadFiles
from greedynas_fast.data.jpeg import plain_size
from greedynas_fast.data.shards import open_parts
from greedynas_fast.errors import InputError

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (extra dali-cu12 or dali-cu13)")

KINDS = (DaliSplit, FolderSplit)
AUGMENT = Augment(crop="random_resized", min_area=0.3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("data") / "all kinds, größe")


def opened(kind: type, root: Path, policy: Any = "skip", max_files: int = 10, in_channels: int = 3) -> Any:
    bad_files = BadFiles(policy, max_files, [])
    store = scan(root, bad_files)
    form = FolderFormat(24, in_channels, torch.zeros(in_channels), torch.full((in_channels,), 1 / 255), 0)
    return kind(store, np.arange(len(store)), form, bad_files)


def notices(split: Any) -> list[str]:
    found: list[str] = split._bad_files.notices
    return found


def load(split: Any, size: int = 7, start: int = 0, num: int = 8) -> tuple[Tensor, Tensor]:
    """Training batches one after the other, and their labels."""
    images, labels = zip(*split.batches(size, start_step=start, num_steps=num, seed=1, augment=AUGMENT), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("in_channels", [3, 1])
def test_all_kinds_show_the_same(corpus: Corpus, in_channels: int) -> None:
    dali, pillow = (opened(kind, corpus.root, in_channels=in_channels) for kind in KINDS)
    (images, labels), (expected, expected_labels) = dali.tensors(), pillow.tensors()
    assert torch.equal(labels, expected_labels)
    apart = (images - expected).abs().amax((1, 2, 3))
    # Rounding; and grey is mixed before resizing in one and after it in the other.
    limit = 1 if in_channels == 3 else 2
    far = {name: float(value) for name, value in zip(dali.names(), apart, strict=True) if value > limit}
    assert far == {}
    assert len(dali.names()) == corpus.usable + len(corpus.bad)
    assert notices(dali) == notices(pillow)
    assert len(notices(dali)) == len(corpus.bad)
    # One pixel to the side would be far away, so the limit tells.
    assert ((images.roll(1, 3) - expected).abs().amax((1, 2, 3)) > 10).sum() >= len(corpus.pictures)


def test_training_meets_the_same_files(corpus: Corpus) -> None:
    dali, pillow = (opened(kind, corpus.root) for kind in KINDS)
    (images, labels), (expected, expected_labels) = load(dali), load(pillow)
    assert torch.equal(labels, expected_labels)
    assert (images - expected)[..., 1:-1, 1:-1].abs().max() <= 1
    assert notices(dali) == notices(pillow)
    assert len(notices(dali)) == len(corpus.bad)
    assert torch.equal(images[21:], load(dali, start=3, num=5)[0])


def test_shards_hold_the_same_images(corpus: Corpus, tmp_path: Path) -> None:
    folder = opened(DaliSplit, corpus.root)
    with tarfile.open(tmp_path / "000.tar", "w") as shard:
        for number, (name, label) in enumerate(zip(folder.names(), folder.labels, strict=True)):
            shard.add(corpus.root / name, f"{number:03d}{Path(name).suffix}")
            member = tarfile.TarInfo(f"{number:03d}.cls")
            member.size = 1
            shard.addfile(member, io.BytesIO(b"%d" % label))
    bad_files = BadFiles("skip", 10, [])
    store = open_parts(tmp_path, bad_files).train
    shards = DaliSplit(store, np.arange(len(store)), folder._form, bad_files)
    assert len(shards) == len(folder)
    assert shards.names()[3].startswith("000.tar")
    assert all(torch.equal(a, b) for a, b in zip(load(shards), load(folder), strict=True))
    assert len(notices(shards)) == len(corpus.bad)


def message(split: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(split.sequential(4))
    return str(caught.value)


def test_the_same_errors(corpus: Corpus, tmp_path: Path) -> None:
    refused = [message(opened(kind, corpus.root, "refuse")) for kind in KINDS]
    assert refused[0] == refused[1]
    assert refused[0].endswith("Remove it, or set data.on_bad_file to skip.")
    limited = [message(opened(kind, corpus.root, max_files=4)) for kind in KINDS]
    assert limited[0] == limited[1]
    assert "More than data.max_bad_files = 4 files are bad" in limited[0]
    hopeless = write_corpus(tmp_path / "hopeless")
    for path in (hopeless.root / "dog").iterdir():
        path.write_bytes(b"\xff\xd8 was an image")
    lost = [message(opened(kind, hopeless.root, max_files=99)) for kind in KINDS]
    assert lost[0] == lost[1]
    assert "a class has no usable image left" in lost[0]


def test_a_file_that_vanishes(corpus: Corpus, tmp_path: Path) -> None:
    copy = write_corpus(tmp_path / "copy")
    splits = [opened(kind, copy.root) for kind in KINDS]
    (copy.root / "cat" / "plain.jpg").unlink()
    (images, _), (expected, _) = (split.tensors() for split in splits)
    assert (images - expected).abs().max() <= 1
    assert notices(splits[0]) == notices(splits[1])
    assert sum("plain.jpg cannot be used: it cannot be read" in notice for notice in notices(splits[0])) == 1


def test_a_file_that_breaks_the_pipeline(corpus: Corpus, tmp_path: Path) -> None:
    # Its head looks plain, but no decoder can make sense of its Huffman table.
    copy = write_corpus(tmp_path / "copy")
    broken = bytearray((copy.root / "cat" / "plain.jpg").read_bytes())
    table = broken.index(b"\xff\xc4") + 5
    broken[table : table + 16] = bytes([255] * 16)
    (copy.root / "cat" / "plain.jpg").write_bytes(broken)
    assert plain_size(bytes(broken)) is not None
    splits = [opened(kind, copy.root) for kind in KINDS]
    (images, _), (expected, _) = (split.tensors() for split in splits)
    assert (images - expected).abs().max() <= 1
    assert notices(splits[0]) == notices(splits[1])
    assert sum("plain.jpg cannot be used" in notice for notice in notices(splits[0])) == 1
