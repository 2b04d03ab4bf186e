"""Augmentation: against loops over single images, and its statistics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from greedynas_fast.data import Augment
from greedynas_fast.data.augment import crop_and_flip, erase, erase_boxes, normalise
from greedynas_fast.data.memory import MemoryImages, MemorySplit
from greedynas_fast.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, height: int = 7, width: int = 5, channels: int = 3) -> Tensor:
    return torch.randint(1, 256, (count, height, width, channels), generator=generator(9), dtype=torch.uint8)


def variants(image: Tensor, pad: int, flip: bool) -> dict[bytes, tuple[int, int, bool]]:
    """All that pad, crop and flip may make of one image, cut out by plain slices."""
    height, width, channels = image.shape
    found = {}
    for mirrored in (False, True) if flip else (False,):
        padded = torch.zeros(height + 2 * pad, width + 2 * pad, channels, dtype=torch.uint8)
        padded[pad : pad + height, pad : pad + width] = image
        for y in range(2 * pad + 1):
            for x in range(2 * pad + 1):
                cut = padded[y : y + height, x : x + width]
                found[(cut.flip(1) if mirrored else cut).contiguous().numpy().tobytes()] = (y, x, mirrored)
    return found


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_pad_crop_and_flip(pad: int, flip: bool, channels: int) -> None:
    batch = images(3, channels=channels)
    allowed = [variants(image, pad, flip) for image in batch]
    seen: list[set[tuple[int, int, bool]]] = [set() for _ in batch]
    for seed in range(400):
        out = crop_and_flip(batch, Augment(crop="pad", pad=pad, flip=flip), generator(seed))
        assert out.shape == batch.shape
        for number, image in enumerate(out):
            seen[number].add(allowed[number][image.contiguous().numpy().tobytes()])
    assert all(len(kinds) == (2 * pad + 1) ** 2 * (1 + flip) for kinds in seen)


def test_pad_crop_statistics() -> None:
    # A single bright pixel in the middle tells the shift; 25 places and 2 directions must be equally frequent.
    batch = torch.zeros(20_000, 9, 9, 1, dtype=torch.uint8)
    batch[:, 4, 3] = 255  # left of the middle, so that the flip shows
    out = crop_and_flip(batch, Augment(crop="pad", pad=2), generator())
    _, rows, columns, _ = out.nonzero(as_tuple=True)
    assert len(rows) == 20_000
    for row in range(2, 7):
        assert abs((rows == row).float().mean() - 0.2) < 0.015
    # Column 3 shifted by -2..2, or its mirror image 5: both reach 3, 4, 5, one of them 1, 2, 6, 7.
    for column, share in zip(range(1, 8), (0.1, 0.1, 0.2, 0.2, 0.2, 0.1, 0.1), strict=True):
        assert abs((columns == column).float().mean() - share) < 0.015


def test_images_change_independently() -> None:
    same = images(1).expand(200, -1, -1, -1)
    out = crop_and_flip(same, Augment(crop="pad", pad=2), generator())
    assert len({image.contiguous().numpy().tobytes() for image in out}) > 30


def test_no_augmentation_changes_nothing() -> None:
    batch = images(4)
    assert torch.equal(crop_and_flip(batch, Augment.none(), generator()), batch)


def test_random_resized_keeps_constant_images_and_ranges() -> None:
    constant = torch.full((50, 16, 12, 3), 77, dtype=torch.uint8)
    augment = Augment(crop="random_resized", min_area=0.1)
    assert torch.equal(crop_and_flip(constant, augment, generator()), constant)
    # On a ramp, the cut shows an interval of it, as wide as the scale says; flips turn it round.
    ramp = (torch.arange(64) * 4).to(torch.uint8).expand(1000, 64, 64)[..., None]
    out = crop_and_flip(ramp, augment, generator())[:, 4, :, 0].int()
    widths = (out[:, -1] - out[:, 0]).abs() / 252
    rising = (out[:, -1] > out[:, 0]).float().mean()
    assert abs(rising - 0.5) < 0.06
    assert widths.min() > 0.2  # sqrt(0.1 * 3/4) = 0.27 of the width, less a pixel
    assert widths.max() <= 1
    assert (out.diff(dim=1).sign().abs().sum(1) > 10).all()
    no_flip = crop_and_flip(ramp, Augment(crop="random_resized", flip=False), generator())[:, 4, :, 0].int()
    assert (no_flip.diff(dim=1) >= 0).all()


def test_random_resized_of_the_whole_image() -> None:
    # With all of the area, one side is always cut to full length; a square ratio would give the image itself.
    batch = images(200, 16, 16)
    out = crop_and_flip(batch, Augment(crop="random_resized", min_area=1.0, flip=False), generator())
    assert out.shape == batch.shape
    assert (out.float() - batch.float()).abs().mean() < 80


def test_erasing() -> None:
    batch = torch.ones(6000, 20, 16, 2)
    out = erase(batch, erase_boxes(6000, 20, 16, 0.3, generator()))
    hit = (out == 0).all(3)  # [B, H, W]
    assert torch.equal(hit, (out == 0).any(3))  # all channels at once
    erased = hit.flatten(1).any(1)
    assert abs(erased.float().mean() - 0.3) < 0.025
    area = hit[erased].float().mean((1, 2))
    assert 0.01 < area.min() < 0.04
    assert 0.25 < area.max() < 0.37
    assert abs(area.mean() - 0.175) < 0.02
    for box in hit[erased][:100]:  # one full rectangle each
        rows, columns = box.any(1), box.any(0)
        assert box.sum() == rows.sum() * columns.sum()
        assert rows.nonzero().max() - rows.nonzero().min() + 1 == rows.sum()
        assert columns.nonzero().max() - columns.nonzero().min() + 1 == columns.sum()
    coverage = hit[erased].float().mean(0)
    assert coverage.min() > 0.002  # corners are reached too
    assert torch.equal(erase(batch, erase_boxes(6000, 20, 16, 0.0, generator())), batch)
    assert (erase(batch[:100], erase_boxes(100, 20, 16, 1.0, generator())) == 0).flatten(1).any(1).all()


def test_normalise_against_numpy() -> None:
    batch = images(3)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    expected = (batch.numpy() / 255 - mean.double().numpy()) / std.double().numpy()
    # Three roundings of float32 on values up to 2.
    np.testing.assert_allclose(normalise(batch, mean, std).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["autoaugment", "autoaugment_cifar10", "randaugment", "trivialaugment", "augmix"])
def test_auto_augment(name: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 12), dtype=np.uint8)
    held = MemoryImages(pixels, resolution=12, in_channels=channels, mean=0.0, std=1.0)
    split = MemorySplit(held, np.arange(16) % 2, np.arange(16))
    augment = Augment(crop="none", flip=False, auto_augment=name)  # type: ignore[arg-type]

    def load(size: int, step: int) -> dict[bytes, bytes]:
        """Original to augmented; the permutation of an epoch does not depend on the batch size."""
        plain = split.batches(size, start_step=step, num_steps=1, seed=3, augment=Augment.none())
        changed = split.batches(size, start_step=step, num_steps=1, seed=3, augment=augment)
        pairs = zip(next(plain)[0], next(changed)[0], strict=True)
        return {a.numpy().tobytes(): b.numpy().tobytes() for a, b in pairs}

    whole = load(16, 0)
    assert whole == load(8, 0) | load(8, 1)  # a function of (seed, epoch, image), not of the batch
    assert sum(a != b for a, b in whole.items()) > 4
    assert whole != load(16, 1)


@pytest.mark.parametrize("resolution", [6, 28, 45])
def test_resize_against_torchvision(resolution: int) -> None:
    from torchvision.transforms.v2 import functional

    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 20), dtype=np.uint8)
    held = MemoryImages(pixels, resolution=resolution, in_channels=1, mean=0.0, std=1 / 255)
    got = held.take(np.arange(5))[..., 0].float()
    expected = functional.resize(torch.from_numpy(pixels)[:, None], [resolution, resolution], antialias=True)[
        :, 0
    ].float()
    assert (got - expected).abs().max() <= 1  # both round to whole grey values


def test_large_sets_are_resized_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    now = MemoryImages(pixels, resolution=12, in_channels=1, mean=0.0, std=1.0)
    monkeypatch.setattr("greedynas_fast.data.memory._MAX_PREPARED_BYTES", 10)
    later = MemoryImages(pixels, resolution=12, in_channels=1, mean=0.0, std=1.0)
    assert torch.equal(now.take(np.array([3, 1])), later.take(np.array([3, 1])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": "big"}, "augment.crop: expected one of none, pad, random_resized, got 'big'"),
        ({"pad": -1}, "augment.pad: expected at least 0"),
        ({"min_area": 0.0}, "augment.min_area"),
        ({"random_erasing": 1.5}, "augment.random_erasing: expected a probability"),
        ({"auto_augment": "mixup"}, "augment.auto_augment: expected one of autoaugment, .* or null, got 'mixup'"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Augment(**options)  # type: ignore[arg-type]


def test_batches_made_ahead_are_those_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    held = MemoryImages(pixels, resolution=8, in_channels=1, mean=0.0, std=1.0)
    split = MemorySplit(held, np.arange(40) % 4, np.arange(40))
    taken: list[int] = []
    take = held.take
    monkeypatch.setattr(held, "take", lambda indices: taken.append(len(indices)) or take(indices))

    def batches(num_steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return split.batches(4, start_step=3, num_steps=num_steps, seed=1, augment=Augment())

    several = list(batches(21))
    assert len(taken) == 21
    for limit, made_at_first in ((1, 2), (3 * 4 * 8 * 8 * 4, 4), (1 << 30, 9)):
        monkeypatch.setattr("greedynas_fast.data.memory._MAX_AHEAD_BYTES", limit)
        some = batches(21)
        taken.clear()
        for pair in zip(next(some), several[0], strict=True):
            assert torch.equal(*pair)
        assert len(taken) == 1  # training begins with the first one
        first = next(some)
        assert len(taken) == made_at_first
        for found, expected in zip([first, *some], several[1:], strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert list(batches(0)) == []
