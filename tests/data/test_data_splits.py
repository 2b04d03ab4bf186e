"""Which images a batch holds: class shares, disjoint parts, epochs, exact continuation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.data import Augment, DataConfig, Split, open_data
from greedynas_fast.data.memory import MemoryImages, MemorySplit
from greedynas_fast.data.seeds import Stream, numpy_generator, seed64
from greedynas_fast.data.splits import divide, stratified
from greedynas_fast.errors import InputError


def numbered(count: int, classes: int = 3, resolution: int = 4) -> MemorySplit:
    """Images whose only value is their number, so that a batch tells where it comes from."""
    values = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None], (count, resolution, resolution))
    held = MemoryImages(images, resolution=resolution, in_channels=1, mean=0.0, std=1 / 255)
    return MemorySplit(held, np.arange(count) % classes, np.arange(count))


def numbers(images: torch.Tensor) -> list[int]:
    return [int(image.max()) for image in images]


def batches(split: Split, size: int, start: int, num: int, seed: int = 5, augment: Augment | None = None) -> list[Any]:
    return list(split.batches(size, start_step=start, num_steps=num, seed=seed, augment=augment or Augment.none()))


def test_an_epoch_shows_every_image_once() -> None:
    split = numbered(20)
    assert split.steps_per_epoch(5) == 4
    seen = []
    for epoch in range(3):
        order = [n for images, _ in batches(split, 5, 4 * epoch, 4) for n in numbers(images)]
        assert sorted(order) == list(range(20))
        seen.append(order)
    assert seen[0] != seen[1] != seen[2]
    assert seen[0] != list(range(20))


def test_the_rest_of_an_epoch_is_left_out() -> None:
    split = numbered(23)
    order = [n for images, _ in batches(split, 5, 0, 4) for n in numbers(images)]
    assert len(set(order)) == 20
    assert split.steps_per_epoch(23) == 1
    assert split.steps_per_epoch(12) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.data())
def test_any_start_gives_the_same_batches(count: int, data: Any) -> None:
    size = data.draw(st.integers(1, count))
    start = data.draw(st.integers(0, 30))
    seed = data.draw(st.integers(0, 2**64 - 1))
    augment = Augment(crop="pad", pad=1, flip=True, random_erasing=0.5)
    split = numbered(count)
    whole = batches(split, size, 0, start + 4, seed, augment)
    for (a, a_labels), (b, b_labels) in zip(whole[start:], batches(split, size, start, 4, seed, augment), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a_labels, b_labels)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.data())
def test_rows_of_the_ranks_make_up_the_batch(count: int, data: Any) -> None:
    size = data.draw(st.integers(1, count))
    ranks = data.draw(st.integers(1, size))
    start = data.draw(st.integers(0, 30))
    crop = data.draw(st.sampled_from(["pad", "random_resized"]))
    augment = Augment(crop=crop, pad=1, auto_augment="randaugment", random_erasing=0.5)
    split = numbered(count)
    options = {"start_step": start, "num_steps": 2, "seed": 5, "augment": augment}
    parts = [list(split.batches(size, rank=rank, num_ranks=ranks, **options)) for rank in range(ranks)]
    for step, (images, labels) in enumerate(split.batches(size, **options)):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
    lengths = [len(part[0][1]) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_seeds_matter_and_the_global_generator_does_not() -> None:
    split = numbered(30)
    torch.manual_seed(1)
    a = batches(split, 10, 0, 3, seed=1, augment=Augment(auto_augment="randaugment", random_erasing=0.5))
    state = torch.manual_seed(2).get_state()
    b = batches(split, 10, 0, 3, seed=1, augment=Augment(auto_augment="randaugment", random_erasing=0.5))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    c = batches(split, 10, 0, 3, seed=2)
    assert any(not torch.equal(x[1], y[1]) for x, y in zip(a, c, strict=True))


def test_batch_form() -> None:
    for in_channels in (1, 3):
        config = DataConfig(train_limit=60, validation_size=20)
        split = open_data(config, resolution=28, in_channels=in_channels, seed=0).train
        for augment in (Augment.none(), Augment(), Augment(crop="random_resized", random_erasing=1.0)):
            images, labels = batches(split, 8, 0, 1, augment=augment)[0]
            assert images.dtype == torch.float32
            assert images.shape == (8, in_channels, 28, 28)
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert labels.dtype == torch.int64
            assert labels.shape == (8,)


def test_sequential_is_everything_in_order() -> None:
    split = numbered(23)
    got = list(split.sequential(10))
    assert [len(labels) for _, labels in got] == [10, 10, 3]
    assert [n for images, _ in got for n in numbers(images)] == list(range(23))
    images, labels = split.tensors()
    assert numbers(images) == list(range(23))
    assert labels.tolist() == [n % 3 for n in range(23)]
    assert np.array_equal(split.labels, labels)


@pytest.mark.parametrize("count", [1, 256, 600])
def test_tensors_are_everything_at_once(count: int) -> None:
    split = numbered(count)
    images, labels = split.tensors()
    one_by_one = list(split.sequential(1))
    assert torch.equal(images, torch.cat([image for image, _ in one_by_one]))
    assert torch.equal(labels, torch.cat([label for _, label in one_by_one]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert len(set(numbers(images))) == min(count, 256)


def test_ranks_divide_the_sequential_batches() -> None:
    split = numbered(23)
    for count in (1, 2, 3, 5):
        got = [list(split.sequential(10, rank=rank, num_ranks=count)) for rank in range(count)]
        assert [n for part in got for images, _ in part for n in numbers(images)] == list(range(23))
        sizes = [len(part) for part in got]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match=r"expected a rank in 0\.\.1, got 2"):
        split.sequential(10, rank=2, num_ranks=2)


def test_bad_sizes() -> None:
    split = numbered(10)
    for size in (11, 0, -1):
        with pytest.raises(InputError, match=f"batch_size: expected 1 to 10 .*got {size}"):
            split.batches(size, start_step=0, num_steps=1, seed=0, augment=Augment.none())
    options = {"start_step": 0, "num_steps": 1, "seed": 0, "augment": Augment.none()}
    with pytest.raises(InputError, match="one image for each of 4 ranks, got 3"):
        split.batches(3, num_ranks=4, **options)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"expected a rank in 0..1, got {rank}"):
            split.batches(4, rank=rank, num_ranks=2, **options)
    with pytest.raises(InputError, match="batch_size: expected at least 1"):
        split.sequential(0)
    for n in (0, 11):
        with pytest.raises(InputError, match=f"subset: expected 1 to 10 images, got {n}"):
            split.subset(n, 0)


def test_subset_is_fixed_and_balanced() -> None:
    split = numbered(60)
    part = split.subset(12, seed=4)
    assert Counter(part.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    picked = numbers(part.tensors()[0])
    assert picked == sorted(picked)
    assert picked == numbers(split.subset(12, seed=4).tensors()[0])
    assert picked != numbers(split.subset(12, seed=5).tensors()[0])
    assert numbers(split.subset(60, seed=1).tensors()[0]) == list(range(60))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 2), st.data())
def test_stratified(label_list: list[int], leave: int, data: Any) -> None:
    labels = np.array(label_list)
    counts = Counter(label_list)
    room = sum(max(count - leave, 0) for count in counts.values())
    n = data.draw(st.integers(0, len(labels)))
    if n > room:
        with pytest.raises(InputError, match="cannot choose"):
            stratified(labels, n, np.random.default_rng(0), leave=leave)
        return
    chosen = stratified(labels, n, np.random.default_rng(0), leave=leave)
    assert len(chosen) == n
    assert len(set(chosen.tolist())) == n
    assert np.array_equal(chosen, np.sort(chosen))
    taken = Counter(labels[chosen].tolist())
    for label, count in counts.items():
        assert taken[label] <= max(count - leave, 0)
        if leave == 0:  # no class is short, so each has its share up to one image
            assert abs(taken[label] - n * count / len(labels)) < 1


@given(st.lists(st.integers(0, 3), min_size=8, max_size=60), st.integers(0, 99))
def test_divide(label_list: list[int], seed: int) -> None:
    labels = np.array(label_list)
    n = len(labels) // 4
    if n > len(labels) - len(set(label_list)):
        return
    rest, part = divide(labels, n, np.random.default_rng(seed))
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(len(labels)))
    assert len(part) == n
    assert set(labels[rest].tolist()) == set(label_list)


def test_parts_of_the_sample_are_disjoint() -> None:
    bundle = open_data(DataConfig(validation_size=500), resolution=28, in_channels=1, seed=0)
    assert bundle.test is not None
    sets = [{image.numpy().tobytes() for image in part.tensors()[0]} for part in (bundle.train, bundle.validation)]
    full = {image.numpy().tobytes() for image in bundle.full_train.tensors()[0]}
    test = {image.numpy().tobytes() for image in bundle.test.tensors()[0]}
    assert not sets[0] & sets[1]
    assert sets[0] | sets[1] == full
    assert not full & test
    assert np.bincount(bundle.validation.labels).tolist() == [50] * 10
    other = open_data(DataConfig(validation_size=500), resolution=28, in_channels=1, seed=1)
    again = open_data(DataConfig(validation_size=500), resolution=28, in_channels=1, seed=0)
    assert torch.equal(again.validation.tensors()[0], bundle.validation.tensors()[0])
    assert not torch.equal(other.validation.tensors()[0], bundle.validation.tensors()[0])
    assert torch.equal(other.test.tensors()[0], bundle.test.tensors()[0])  # type: ignore[union-attr]


def test_seed_streams_are_independent() -> None:
    seeds = {seed64(seed, stream, n) for seed in (0, 1, 2**32, 2**33 + 1) for stream in Stream for n in (0, 1, 2**32)}
    assert len(seeds) == 4 * len(Stream) * 3
    assert numpy_generator(1, Stream.SHUFFLE, 2).integers(100) == numpy_generator(1, Stream.SHUFFLE, 2).integers(100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "zip"}, "data.format: expected one of auto, sample, idx, folder, shards, got 'zip'"),
        ({"format": "idx"}, "data.root: expected a folder"),
        ({"format": "shards"}, "data.root: expected a folder for the format shards"),
        ({"format": "sample", "root": "x"}, "data.root: expected nothing"),
        ({"root": ""}, "data.root: .* got an empty text"),
        ({"validation_size": 0}, "data.validation_size: expected at least 1"),
        ({"validation_size": 1.0}, "data.validation_size: expected a number of images or a fraction"),
        ({"test_size": -0.5}, "data.test_size"),
        ({"train_limit": 1}, "data.train_limit: expected at least 2"),
        ({"workers": -1}, "data.workers: expected at least 0"),
        ({"max_bad_files": -1}, "data.max_bad_files"),
        ({"on_bad_file": "ignore"}, "data.on_bad_file: expected one of refuse, skip"),
        ({"normalisation": "x"}, "data.normalisation"),
        ({"check_files": "x"}, "data.check_files"),
        ({"backend": "gpu"}, "data.backend: expected one of auto, dali, torch, got 'gpu'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({}, {"in_channels": 2}, r"in_channels: expected 1 \(grey\) or 3"),
        ({}, {"resolution": 0}, "resolution: expected at least 1"),
        ({}, {"seed": -1}, "seed: expected at least 0"),
        ({"validation_size": 4000}, {}, "validation_size: 4000 of 4000 images leaves nothing"),
        ({"validation_size": 3995}, {}, "cannot choose 3995 of 4000 images in 10 classes"),
        ({"validation_size": 0.0001}, {}, "validation_size: 0.0001 of 4000"),
        ({"train_limit": 9}, {}, "train_limit: 9 images are too few"),
        ({"root": "/nowhere/at/all"}, {}, "data folder /nowhere/at/all: expected a folder, there is none"),
        ({"root": __file__}, {}, "expected a folder, found a file"),
    ],
)
def test_bad_calls(options: dict[str, Any], arguments: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_data(DataConfig(**options), **{"resolution": 28, "in_channels": 1, "seed": 0, **arguments})


def test_default_sizes() -> None:
    bundle = open_data(DataConfig(), resolution=28, in_channels=1, seed=0)
    assert (len(bundle.train), len(bundle.validation)) == (3000, 1000)
    bundle = open_data(DataConfig(validation_size=0.1), resolution=28, in_channels=1, seed=0)
    assert (len(bundle.train), len(bundle.validation)) == (3600, 400)
