"""Policies of automatic augmentation as data: which operations, how likely, how strong.

AutoAugment: Cubuk et al. 2019, https://arxiv.org/abs/1805.09501, Tables 7 (CIFAR-10) and 9 (ImageNet).
RandAugment: Cubuk et al. 2020, https://arxiv.org/abs/1909.13719. TrivialAugment: Müller and Hutter 2021,
https://arxiv.org/abs/2103.10158. Ranges and numbers of bins are torchvision's.
"""

from __future__ import annotations

import random
from typing import NamedTuple

# Names of the operations that a policy may ask for.
CHANGES = (
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
_SIGNED = frozenset(CHANGES[:9])
# RandAugment and TrivialAugment draw from the same 14; theirs is the identity instead of Invert.
_IDENTITY = "Identity"
_RANDOM_CHANGES = (_IDENTITY, *CHANGES[:-1])
_TRANSLATE_SHARE = 150 / 331  # of the side of the image

_AUTOAUGMENT_BINS, _RANDOM_BINS = 10, 31
_RANDAUGMENT_CHANGES, _RANDAUGMENT_MAGNITUDE = 2, 9

# One sub-policy a line: operation, probability and magnitude bin, twice; no bin: the operation has no magnitude.
_IMAGENET = """
Posterize 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6
Equalize 0.8, Equalize 0.6
Posterize 0.6 7, Posterize 0.6 6
Equalize 0.4, Solarize 0.2 4
Equalize 0.4, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6
Posterize 0.8 5, Equalize 1.0
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6, Posterize 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6
Equalize 0.0, Equalize 0.8
Invert 0.6, Equalize 1.0
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6
ShearX 0.6 5, Equalize 1.0
Color 0.4 0, Equalize 0.6
Equalize 0.4, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6
Invert 0.6, Equalize 1.0
Color 0.6 4, Contrast 1.0 8
Equalize 0.8, Equalize 0.6
"""
_CIFAR10 = """
Invert 0.1, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5, Equalize 0.9
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6, Equalize 0.5
Contrast 0.6 7, Sharpness 0.6 5
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3, AutoContrast 0.4
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0
Equalize 0.2, AutoContrast 0.6
Equalize 0.2, Equalize 0.6
Color 0.9 9, Equalize 0.6
AutoContrast 0.8, Solarize 0.2 8
Brightness 0.1 3, Color 0.7 0
Solarize 0.4 5, AutoContrast 0.9
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9, Solarize 0.8 3
Equalize 0.8, Invert 0.1
TranslateY 0.7 9, AutoContrast 0.9
"""


class Change(NamedTuple):
    """One operation on the colours or the shape of an image.

    Attributes:
        name: one of `CHANGES`.
        magnitude: signed. Shear: the shear factor, x moves by `magnitude` pixels a row (about the top left corner).
            Translate: whole pixels at the batch's resolution, positive to the right or down. Rotate: degrees, counter-
            clockwise. Brightness, Color, Contrast, Sharpness: the enhancement factor less 1. Posterize: bits that
            stay. Solarize: values from 255 * magnitude on are inverted. 0 where the operation has none.
    """

    name: str
    magnitude: float


class _Choice(NamedTuple):
    name: str
    probability: float
    bin: int


def _parse(table: str) -> tuple[tuple[_Choice, ...], ...]:
    def choice(text: str) -> _Choice:
        name, probability, *bins = text.split()
        return _Choice(name, float(probability), int(bins[0]) if bins else 0)

    return tuple(tuple(map(choice, line.split(","))) for line in table.strip().splitlines())


AUTOAUGMENT = {"autoaugment": _parse(_IMAGENET), "autoaugment_cifar10": _parse(_CIFAR10)}


def draw_changes(policy: str, rng: random.Random, resolution: int) -> tuple[Change, ...]:
    """Draws the operations for one image.

    Args:
        policy: `autoaugment`, `autoaugment_cifar10`, `randaugment` or `trivialaugment`.
        rng: where the random numbers come from; only `random()` is called, which no version of Python changes.
        resolution: height and width of the image that they are for.
    """
    if policy in AUTOAUGMENT:
        policies = AUTOAUGMENT[policy]
        drawn = [
            _change(choice.name, magnitude(choice.name, choice.bin, _AUTOAUGMENT_BINS, resolution), rng)
            for choice in policies[int(rng.random() * len(policies))]
            if rng.random() < choice.probability
        ]
    elif policy == "randaugment":
        drawn = []
        for _ in range(_RANDAUGMENT_CHANGES):
            name = _any(rng)
            drawn.append(_change(name, magnitude(name, _RANDAUGMENT_MAGNITUDE, _RANDOM_BINS, resolution), rng))
    elif policy == "trivialaugment":
        name, chosen = _any(rng), int(rng.random() * _RANDOM_BINS)
        drawn = [_change(name, wide_magnitude(name, chosen, _RANDOM_BINS), rng)]
    else:
        raise ValueError(f"draw_changes: no policy {policy!r}")
    return tuple(change for change in drawn if change.name != _IDENTITY)


def magnitude(name: str, chosen: int, bins: int, resolution: int) -> float:
    """The magnitude in bin `chosen` (of `bins`, counted from 0) in AutoAugment and RandAugment, without a sign."""
    share = chosen / (bins - 1)
    if name in ("ShearX", "ShearY"):
        return 0.3 * share
    if name in ("TranslateX", "TranslateY"):
        return _TRANSLATE_SHARE * resolution * share
    if name == "Rotate":
        return 30 * share
    if name == "Posterize":
        return round(8 - 4 * share)
    if name == "Solarize":
        return 1 - share
    return 0.9 * share if name in _SIGNED else 0.0


def wide_magnitude(name: str, chosen: int, bins: int) -> float:
    """The magnitude in bin `chosen` (of `bins`, counted from 0) in TrivialAugment ("wide"), without a sign."""
    share = chosen / (bins - 1)
    if name in ("TranslateX", "TranslateY"):
        return 32 * share
    if name == "Rotate":
        return 135 * share
    if name == "Posterize":
        return round(8 - 6 * share)
    if name == "Solarize":
        return 1 - share
    return 0.99 * share if name in _SIGNED else 0.0


def _any(rng: random.Random) -> str:
    return _RANDOM_CHANGES[int(rng.random() * len(_RANDOM_CHANGES))]


def _change(name: str, size: float, rng: random.Random) -> Change:
    """The operation with a random sign where it has one; translations cut to whole pixels."""
    if name in _SIGNED and rng.random() < 0.5:
        size = -size
    return Change(name, float(int(size)) if name.startswith("Translate") else size)
