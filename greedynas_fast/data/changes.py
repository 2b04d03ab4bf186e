"""Carries out the operations of automatic augmentation on one image, as torchvision's AutoAugment classes do.

Bilinear interpolation; what an operation uncovers is black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from greedynas_fast.data.policies import Change

if TYPE_CHECKING:
    from PIL.Image import Image


def apply_changes(image: Image, changes: Iterable[Change]) -> Image:
    """Applies the operations one after the other.

    Args:
        image: of mode `L` or `RGB`.
        changes: what to do.
    """
    for change in changes:
        image = _apply(image, change)
    return image


def _apply(image: Image, change: Change) -> Image:
    from torchvision.transforms.v2 import InterpolationMode, functional

    name, magnitude = change
    bilinear = InterpolationMode.BILINEAR
    if name == "ShearX":
        return _affine(image, shear=[math.degrees(math.atan(magnitude)), 0.0])
    if name == "ShearY":
        return _affine(image, shear=[0.0, math.degrees(math.atan(magnitude))])
    if name == "TranslateX":
        return _affine(image, translate=[int(magnitude), 0])
    if name == "TranslateY":
        return _affine(image, translate=[0, int(magnitude)])
    if name == "Rotate":
        changed = functional.rotate(image, magnitude, interpolation=bilinear)
    elif name == "Brightness":
        changed = functional.adjust_brightness(image, 1 + magnitude)
    elif name == "Color":
        changed = functional.adjust_saturation(image, 1 + magnitude)
    elif name == "Contrast":
        changed = functional.adjust_contrast(image, 1 + magnitude)
    elif name == "Sharpness":
        changed = functional.adjust_sharpness(image, 1 + magnitude)
    elif name == "Posterize":
        changed = functional.posterize(image, int(magnitude))
    elif name == "Solarize":
        changed = functional.solarize(image, 255 * magnitude)
    elif name == "AutoContrast":
        changed = functional.autocontrast(image)
    elif name == "Equalize":
        changed = functional.equalize(image)
    elif name == "Invert":
        changed = functional.invert(image)
    else:
        raise ValueError(f"apply_changes: no operation {name!r}")
    return cast("Image", changed)


def _affine(image: Image, translate: list[int] | None = None, shear: list[float] | None = None) -> Image:
    """Moves an image, or shears it about its top left corner."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    changed = functional.affine(
        image,
        angle=0.0,
        translate=translate or [0, 0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        center=[0, 0] if shear else None,
    )
    return cast("Image", changed)
