"""Automatic augmentation by DALI's own operators, against Pillow's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from greedynas_fast.data.changes import apply_changes
from greedynas_fast.data.dali.geometry import Region
from greedynas_fast.data.dali.pipeline import Pipeline, PipelineForm, as_pixmap
from greedynas_fast.data.policies import CHANGES, Change

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (extra dali-cu12 or dali-cu13)")
# DALI's modules use what newer Pythons deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nvidia")

SIZE = 48
WHOLE = Region((0, 0), (SIZE, SIZE), (0.0, 0.0), (float(SIZE), float(SIZE)), (0, 0))
MAGNITUDES = {
    **dict.fromkeys(("ShearX", "ShearY"), (0.3, -0.2)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (7.0, -9.0)),
    "Rotate": (20.0, -135.0),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.9, -0.99)),
    "Posterize": (2.0, 5.0, 8.0),
    "Solarize": (0.0, 0.47, 1.0),
}
EVERY_CHANGE = [Change(name, magnitude) for name in CHANGES for magnitude in MAGNITUDES.get(name, (0.0,))]


def picture(in_channels: int) -> Image.Image:
    """Smooth, with other ranges of values in its channels; the same in all of them where there is to be one."""
    down, across = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    waves = 0.5 + 0.25 * np.sin(7 * across + 3 * down) + 0.25 * np.cos(5 * down * across)
    spans = np.array([(20, 200), (5, 250), (60, 120)] if in_channels == 3 else [(20, 230)] * 3)
    pixels = (spans[:, 0] + waves[..., None] * (spans[:, 1] - spans[:, 0])).astype(np.uint8)
    image = Image.fromarray(pixels)
    return image if in_channels == 3 else image.convert("L")


def by_dali(image: Image.Image, *images: tuple[Change, ...]) -> npt.NDArray[np.int32]:
    """The image with each list of changes, [n, SIZE, SIZE, C]."""
    in_channels = len(image.getbands())
    pipeline = Pipeline(PipelineForm(len(images), SIZE, in_channels, False, True, 1, None))
    encoded = [as_pixmap(np.asarray(image.convert("RGB")))] * len(images)
    pipeline.put(encoded, [WHOLE] * len(images), images)
    found = pipeline.take().numpy().astype(np.int32)
    pipeline.close()
    return found


def by_pillow(image: Image.Image, changes: tuple[Change, ...]) -> npt.NDArray[np.int32]:
    return np.asarray(apply_changes(image, changes), dtype=np.int32).reshape(SIZE, SIZE, -1)


@pytest.mark.parametrize("in_channels", [3, 1])
def test_every_operation_is_pillows(in_channels: int) -> None:
    image = picture(in_channels)
    found = by_dali(image, *((change,) for change in EVERY_CHANGE))
    for change, pixels in zip(EVERY_CHANGE, found, strict=True):
        wanted = by_pillow(image, (change,))
        assert (
            change.name in ("Color", "Posterize", "Solarize")
            or (wanted != np.asarray(image).reshape(wanted.shape)).any()
        )
        apart = np.abs(pixels - wanted)
        if change.name == "Equalize":  # OpenCV's formula
            assert apart.max() <= 32, change
        elif change.name == "Sharpness":  # Pillow leaves the outermost pixels
            assert apart[1:-1, 1:-1].max() <= 2, change
        elif change.name in ("ShearX", "ShearY", "Rotate"):  # where black begins, DALI mixes and Pillow does not
            assert (apart > 2).mean() < 0.05, change
        else:
            assert apart.max() <= 2, change


def test_flat_channels_stay() -> None:
    flat = Image.new("RGB", (SIZE, SIZE), (7, 0, 255))
    found = by_dali(flat, (Change("AutoContrast", 0.0),))
    assert np.array_equal(found[0], np.asarray(flat))


def test_two_changes_in_their_order() -> None:
    image = picture(3)
    one, other = Change("Solarize", 0.5), Change("Brightness", 0.6)
    found = by_dali(image, (one, other), (other, one), (), (other,))
    for pixels, changes in zip(found, [(one, other), (other, one), (), (other,)], strict=True):
        apart = np.abs(pixels - by_pillow(image, changes))
        assert np.quantile(apart, 0.95) <= 1  # a value beside the threshold may be inverted in one alone
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("in_channels", [3, 1])
def test_what_is_done_to_one_image_does_not_touch_others(in_channels: int) -> None:
    image: Any = picture(in_channels)
    together = by_dali(image, *((change,) for change in EVERY_CHANGE), ())
    for change, pixels in zip(EVERY_CHANGE[::4], together[::4], strict=False):
        assert np.array_equal(by_dali(image, (change,))[0], pixels), change
    assert np.abs(together[-1] - by_pillow(image, ())).max() <= 1
