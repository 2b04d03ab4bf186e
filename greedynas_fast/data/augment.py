"""Augmentation that keeps the label: what is done, and the vectorised form for batches in memory.

Letters: B images, H height, W width, C channels. Images are uint8 [B, H, W, C] until `normalise`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from greedynas_fast.errors import InputError

Crop = Literal["none", "pad", "random_resized"]
AutoAugment = Literal["autoaugment", "autoaugment_cifar10", "randaugment", "trivialaugment", "augmix"]

# Ranges of torchvision's RandomResizedCrop and RandomErasing (the shares of the area and the aspect ratios).
CROP_RATIO = (3 / 4, 4 / 3)
_ERASE_AREA = (0.02, 0.33)
_ERASE_RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Augment:
    """Random changes of training images that keep their labels.

    Attributes:
        crop: `pad` (pad with black, cut out at a random place), `random_resized` (cut out a random part, resize it), or
            `none`.
        pad: pixels added on each side by `pad`.
        min_area: smallest share of the image that `random_resized` cuts out.
        flip: mirror left and right with probability 1/2 (wrong for digits and letters).
        auto_augment: a policy of torchvision, or None. `autoaugment` is the ImageNet policy (Sec. 5.1).
        random_erasing: probability of filling a random box with the mean colour.
    """

    crop: Crop = "pad"
    pad: int = 4
    min_area: float = 0.08
    flip: bool = True
    auto_augment: AutoAugment | None = None
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise InputError(f"augment.crop: expected one of {', '.join(get_args(Crop))}, got {self.crop!r}.")
        if self.auto_augment is not None and self.auto_augment not in get_args(AutoAugment):
            names = ", ".join(get_args(AutoAugment))
            raise InputError(f"augment.auto_augment: expected one of {names} or null, got {self.auto_augment!r}.")
        if self.pad < 0:
            raise InputError(f"augment.pad: expected at least 0 pixels, got {self.pad}.")
        if not 0 < self.min_area <= 1:
            raise InputError(f"augment.min_area: expected a share in (0, 1], got {self.min_area}.")
        if not 0 <= self.random_erasing <= 1:
            raise InputError(f"augment.random_erasing: expected a probability in [0, 1], got {self.random_erasing}.")

    @classmethod
    def none(cls) -> Augment:
        """No augmentation at all."""
        return cls(crop="none", flip=False)


def auto_augment_transform(name: AutoAugment) -> Any:
    """Torchvision's transform of a PIL image; it draws from torch's global generator."""
    from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

    bilinear = InterpolationMode.BILINEAR
    if name == "autoaugment":
        return v2.AutoAugment(AutoAugmentPolicy.IMAGENET, interpolation=bilinear)
    if name == "autoaugment_cifar10":
        return v2.AutoAugment(AutoAugmentPolicy.CIFAR10, interpolation=bilinear)
    if name == "randaugment":
        return v2.RandAugment(interpolation=bilinear)
    if name == "trivialaugment":
        return v2.TrivialAugmentWide(interpolation=bilinear)
    return v2.AugMix(interpolation=bilinear)


def crop_and_flip(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Crops and mirrors a batch, each image in its own way.

    Args:
        images: uint8 [B, H, W, C].
        augment: what to do.
        generator: where the random numbers come from.

    Returns:
        uint8 [B, H, W, C].
    """
    count, height, width, _ = images.shape
    mirrored = torch.zeros(count, dtype=torch.bool)
    if augment.flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
    if augment.crop == "random_resized":
        return _random_resized(images, augment.min_area, mirrored, generator)
    pad = augment.pad if augment.crop == "pad" else 0
    top = left = [0] * count
    if pad > 0:
        top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).tolist()
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad)).numpy()
    # One image after the other: rows are copied, where an index of the whole batch would gather value by value.
    cut = np.empty(images.shape, dtype=np.uint8)
    for i, (row, column, mirror) in enumerate(zip(top, left, mirrored.tolist(), strict=True)):
        window = padded[i, row : row + height, column : column + width]
        cut[i] = window[:, ::-1] if mirror else window
    return torch.from_numpy(cut)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Takes the mean and the standard deviation (of values in 0..1) out: uint8 [B, H, W, C] to float32 [B, H, W, C].

    Args:
        images: uint8 [B, H, W, C].
        mean: float32 [C].
        std: float32 [C].
    """
    return images.to(torch.float32).sub_(mean * 255).div_(std * 255)


def erase_boxes(count: int, height: int, width: int, probability: float, generator: torch.Generator) -> Tensor:
    """Draws the boxes of random erasing.

    Note: torchvision draws again when a box does not fit; here its sides are cut to the image's.

    Args:
        count: images in the batch (B).
        height: of the images.
        width: of the images.
        probability: share of the images that lose a box.
        generator: where the random numbers come from.

    Returns:
        Top, left, height and width of each box, int32 [B, 4]; zeros: none.
    """
    chosen, share, shape, top, left = torch.rand(5, count, 1, generator=generator)
    area = (_ERASE_AREA[0] + share * (_ERASE_AREA[1] - _ERASE_AREA[0])) * (height * width)
    ratio = _log_uniform(shape, _ERASE_RATIO)
    box_height = (area * ratio).sqrt().round().clamp(1, height)
    box_width = (area / ratio).sqrt().round().clamp(1, width)
    top = (top * (height - box_height + 1)).floor()
    left = (left * (width - box_width + 1)).floor()
    boxes = torch.cat([top, left, box_height, box_width], dim=1)
    return torch.where(chosen < probability, boxes, 0.0).to(torch.int32)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Fills a box of each image with zero, the mean colour after `normalise`.

    Args:
        images: float32 [B, H, W, C].
        boxes: int32 [B, 4], as `erase_boxes` gives them.
    """
    _, height, width, _ = images.shape
    rows, columns = torch.arange(height), torch.arange(width)
    top, left, box_height, box_width = boxes.unsqueeze(2).unbind(1)  # [B, 1] each
    in_rows = (rows >= top) & (rows < top + box_height)  # [B, H]
    in_columns = (columns >= left) & (columns < left + box_width)  # [B, W]
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[..., None], 0.0)


def _random_resized(images: Tensor, min_area: float, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """Cuts a random box out of each image, and resizes it back to [H, W] (bilinear)."""
    count, height, width, _ = images.shape
    share, shape, top, left = torch.rand(4, count, generator=generator)
    area = (min_area + share * (1 - min_area)) * (height * width)
    ratio = _log_uniform(shape, CROP_RATIO)
    # In the coordinates of grid_sample the image is the square from -1 to 1, so a box is a scale and a centre.
    scale_x = ((area * ratio).sqrt() / width).clamp(max=1)
    scale_y = ((area / ratio).sqrt() / height).clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -scale_x, scale_x)
    theta[:, 0, 2] = (2 * left - 1) * (1 - scale_x)
    theta[:, 1, 1] = scale_y
    theta[:, 1, 2] = (2 * top - 1) * (1 - scale_y)
    pixels = images.permute(0, 3, 1, 2).to(torch.float32)  # [B, C, H, W]
    grid = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    cut = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return cut.round().to(torch.uint8).permute(0, 2, 3, 1)


def _log_uniform(unit: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return (low + unit * (high - low)).exp()
