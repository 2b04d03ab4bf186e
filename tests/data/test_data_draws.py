"""Random decisions about one image: torchvision's distributions and policies, and how they are carried out."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from greedynas_fast.data import Augment
from greedynas_fast.data.changes import apply_changes
from greedynas_fast.data.draws import CHANGES, Change, draw_erasing, draw_image
from greedynas_fast.data.policies import AUTOAUGMENT, draw_changes, magnitude, wide_magnitude

RANDOM_RESIZED = Augment(crop="random_resized")


def photo(seed: int = 0, mode: str = "RGB", size: int = 32) -> Image.Image:
    """Smooth, so that operations have something to work on."""
    shape = (4, 4) if mode == "L" else (4, 4, 3)
    pixels = np.random.default_rng(seed).integers(30, 200, shape, dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "policy"),
    [("autoaugment", AutoAugmentPolicy.IMAGENET), ("autoaugment_cifar10", AutoAugmentPolicy.CIFAR10)],
)
def test_policies_are_torchvisions(name: str, policy: AutoAugmentPolicy) -> None:
    ours = [[(c.name, c.probability, c.bin) for c in choices] for choices in AUTOAUGMENT[name]]
    theirs = [
        [(operation, p, bin or 0) for operation, p, bin in choices] for choices in v2.AutoAugment(policy)._policies
    ]
    assert ours == theirs


@pytest.mark.parametrize("transform", [v2.AutoAugment, v2.RandAugment, v2.TrivialAugmentWide])
def test_magnitudes_are_torchvisions(transform: type) -> None:
    bins = 10 if transform is v2.AutoAugment else 31
    space = transform._AUGMENTATION_SPACE  # type: ignore[attr-defined]
    names = set(CHANGES)
    assert set(space) == (names if bins == 10 else names - {"Invert"} | {"Identity"})
    for name, (values, _) in space.items():
        theirs = values(bins, 224, 224)
        expected = torch.zeros(bins) if theirs is None else theirs
        if transform is v2.TrivialAugmentWide:
            ours = [wide_magnitude(name, chosen, bins) for chosen in range(bins)]
        else:
            ours = [magnitude(name, chosen, bins, 224) for chosen in range(bins)]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_carried_out_as_in_torchvision(name: str, mode: str) -> None:
    transform = v2.AutoAugment(interpolation=InterpolationMode.BILINEAR)
    image = photo(mode=mode)
    for size in (magnitude(name, 7, 10, 32), -magnitude(name, 7, 10, 32)):
        if size < 0 and not v2.AutoAugment._AUGMENTATION_SPACE[name][1]:
            continue
        change = Change(name, float(int(size)) if name.startswith("Translate") else size)
        expected = transform._apply_image_or_video_transform(
            image, name, size, interpolation=transform.interpolation, fill=transform._fill
        )
        np.testing.assert_array_equal(np.asarray(apply_changes(image, [change])), np.asarray(expected))
        unchanged = name == "Color" and mode == "L"  # grey has no saturation
        assert np.array_equal(np.asarray(expected), np.asarray(image)) == unchanged


@pytest.mark.parametrize("policy", ["autoaugment", "autoaugment_cifar10", "randaugment", "trivialaugment"])
def test_how_often_each_change_is_drawn(policy: str) -> None:
    count = 20_000
    rng = random.Random(0)
    drawn = [draw_changes(policy, rng, 224) for _ in range(count)]
    seen = Counter(change.name for changes in drawn for change in changes)
    expected: Counter[str] = Counter()
    if policy in AUTOAUGMENT:
        for choices in AUTOAUGMENT[policy]:
            for choice in choices:
                expected[choice.name] += choice.probability / len(AUTOAUGMENT[policy])  # type: ignore[assignment]
    else:
        for name in CHANGES[:-1]:
            expected[name] = (2 if policy == "randaugment" else 1) / 14  # type: ignore[assignment]
    for name in CHANGES:
        # Five standard deviations of a sum of independent draws.
        assert abs(seen[name] / count - expected[name]) < 5 * (max(expected[name], 1e-9) / count) ** 0.5
    # What has a sign has both, equally often.
    rotations = [change.magnitude for changes in drawn for change in changes if change.name == "Rotate"]
    assert abs(np.mean(np.sign([r for r in rotations if r])) if any(rotations) else 0.0) < 0.1


def test_boxes_have_torchvisions_distribution() -> None:
    height, width, count = 300, 400, 4000
    ours = np.array([draw_image(RANDOM_RESIZED, seed, height, width, 224).box for seed in range(count)])
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(224)
    image = Image.new("L", (width, height))
    drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        difference = np.quantile(ours, share, axis=0) - np.quantile(theirs, share, axis=0)
        assert np.abs(difference).max() < 14  # two samples of 4,000 differ by some 2 % of the range


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**64 - 1), st.floats(0.01, 1))
def test_boxes_lie_within_the_image(height: int, width: int, seed: int, min_area: float) -> None:
    augment = Augment(crop="random_resized", min_area=min_area)
    draw = draw_image(augment, seed, height, width, 32)
    assert draw == draw_image(augment, seed, height, width, 32)
    assert draw.box is not None
    top, left, box_height, box_width = draw.box
    assert min(top, left) >= 0
    assert min(box_height, box_width) >= 1
    assert top + box_height <= height
    assert left + box_width <= width


def test_an_image_that_no_box_fits_gives_its_centre() -> None:
    assert draw_image(Augment(crop="random_resized", min_area=1.0), 0, 10, 1000, 224).box == (0, 493, 10, 13)
    assert draw_image(Augment(crop="random_resized", min_area=1.0), 0, 1000, 10, 224).box == (493, 0, 13, 10)


def test_shifts_and_flips() -> None:
    draws = [draw_image(Augment(crop="pad", pad=2), seed, 9, 9, 9) for seed in range(5000)]
    shifts = Counter(draw.shift for draw in draws)
    assert set(shifts) == {(y, x) for y in range(5) for x in range(5)}
    assert min(shifts.values()) > 130  # of 200
    assert abs(np.mean([draw.mirrored for draw in draws]) - 0.5) < 0.04
    assert {draw.box for draw in draws} == {None}
    nothing = draw_image(None, 5, 9, 9, 9)
    assert nothing == draw_image(Augment.none(), 5, 9, 9, 9)
    assert (nothing.box, nothing.shift, nothing.mirrored, nothing.changes) == (None, None, False, ())


def test_erasing_is_drawn_for_the_whole_batch() -> None:
    boxes = draw_erasing(0.5, 2000, 32, seed=3, step=7)
    assert boxes.dtype == np.int32
    assert boxes.shape == (2000, 4)
    erased = boxes[boxes.any(1)]
    assert abs(len(erased) / 2000 - 0.5) < 0.06
    assert (erased[:, :2] + erased[:, 2:] <= 32).all()
    assert (erased[:, 2:] > 0).all()
    assert np.array_equal(boxes, draw_erasing(0.5, 2000, 32, seed=3, step=7))
    assert not np.array_equal(boxes, draw_erasing(0.5, 2000, 32, seed=3, step=8))
