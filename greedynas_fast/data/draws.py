"""The random decisions about one image of a folder or of shards, for every back end.

They are drawn here and not in torchvision or DALI: so they are the same in all of them, whatever the number of worker
processes and ranks, and to go on with a training needs no state but the number of the step.
The distributions are those of torchvision's transforms.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.augment import CROP_RATIO, Augment, erase_boxes
from greedynas_fast.data.policies import CHANGES, Change, draw_changes
from greedynas_fast.data.seeds import Stream, torch_generator

__all__ = ["CHANGES", "Change", "ImageDraw", "draw_erasing", "draw_image", "evaluation_short_side"]

_CROP_TRIES = 10


class ImageDraw(NamedTuple):
    """What is done with one image, in this order.

    Attributes:
        box: top, left, height and width in pixels of the upright source image: cut out and resized to
            resolution x resolution (bilinear, antialiased). None: the geometry of evaluation, that is the shorter
            side resized to `evaluation_short_side`, then the centre.
        shift: top and left of the crop in the image padded with `Augment.pad` black pixels on each side; None: no
            padding.
        mirrored: left and right change places.
        changes: then applied in order; what a shape change uncovers is black.
    """

    box: tuple[int, int, int, int] | None
    shift: tuple[int, int] | None
    mirrored: bool
    changes: tuple[Change, ...]


def evaluation_short_side(resolution: int) -> int:
    """Length in pixels of the shorter side before the centre is cut out: 256 at a resolution of 224."""
    return round(resolution * 256 / 224)


def draw_image(augment: Augment | None, seed: int, height: int, width: int, resolution: int) -> ImageDraw:
    """Draws the decisions for one image.

    Args:
        augment: what may be done; None for evaluation. `augmix` has no list of changes: it is torchvision's own.
        seed: of this image in this epoch.
        height: of the upright source image, in pixels.
        width: of the upright source image, in pixels.
        resolution: height and width of the result, in pixels.

    Returns:
        A pure function of the arguments.
    """
    if augment is None:
        return ImageDraw(None, None, False, ())
    # Only random() is called, whose numbers are the same in every version of Python.
    rng = random.Random(seed)
    box = shift = None
    if augment.crop == "random_resized":
        box = _random_box(rng, height, width, augment.min_area)
    elif augment.crop == "pad" and augment.pad > 0:
        places = 2 * augment.pad + 1
        shift = int(rng.random() * places), int(rng.random() * places)
    mirrored = augment.flip and rng.random() < 0.5
    policy = augment.auto_augment
    changes = () if policy is None or policy == "augmix" else draw_changes(policy, rng, resolution)
    return ImageDraw(box, shift, mirrored, changes)


def draw_erasing(probability: float, batch_size: int, resolution: int, seed: int, step: int) -> npt.NDArray[np.int32]:
    """Draws the boxes that random erasing fills with the mean colour (zero after normalisation).

    Args:
        probability: share of the images that lose a box.
        batch_size: images in the whole batch, over all ranks.
        resolution: height and width of the images.
        seed: of the training.
        step: of the training.

    Returns:
        Top, left, height and width for each image, int32 [B, 4]; zeros: no box.
    """
    generator = torch_generator(seed, Stream.AUGMENT_BATCH, step)
    boxes: npt.NDArray[np.int32] = erase_boxes(batch_size, resolution, resolution, probability, generator).numpy()
    return boxes


def _random_box(rng: random.Random, height: int, width: int, min_area: float) -> tuple[int, int, int, int]:
    """A box with a uniform share of the area and a log-uniform aspect ratio; the centre if ten do not fit."""
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(_CROP_TRIES):
        area = (min_area + rng.random() * (1 - min_area)) * (height * width)
        ratio = math.exp(low + rng.random() * (high - low))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.random() * (height - box_height + 1))
            return top, int(rng.random() * (width - box_width + 1)), box_height, box_width
    box_width = min(width, round(height * CROP_RATIO[1]))
    box_height = min(height, round(width / CROP_RATIO[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
