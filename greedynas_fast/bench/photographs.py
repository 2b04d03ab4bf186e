"""JPEG files as large as ImageNet's: smooth noise at several scales costs a decoder what a photograph does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, QUALITY = 500, 375, 90
CLASSES = 4
# Cells across the width, and how much each scale adds: about 1 / frequency, as in photographs, and the camera's noise.
_SCALES = ((3, 40.0), (6, 30.0), (12, 22.0), (25, 16.0), (50, 12.0), (100, 9.0), (200, 7.0))
_GRAIN = 15.0


def write(folder: Path, count: int, seed: int = 0) -> float:
    """Write `count` images as `folder/<class>/<number>.jpg`, in `CLASSES` classes.

    Every fourth image stands upright.

    Returns:
        Mean size of a file in bytes.
    """
    from PIL import Image

    sizes = []
    for index in range(count):
        place = folder / f"class{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        height, width = (WIDTH, HEIGHT) if index // CLASSES % 4 == 3 else (HEIGHT, WIDTH)
        file = place / f"{index:04d}.jpg"
        Image.fromarray(_pixels(height, width, np.random.default_rng([seed, index]))).save(file, quality=QUALITY)
        sizes.append(file.stat().st_size)
    return sum(sizes) / count


def _pixels(height: int, width: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image, [height, width, 3]; brightness varies more than colour."""
    total = np.full((height, width, 3), 120.0, dtype=np.float32)
    for cells, amplitude in _SCALES:
        shape = (max(2, cells * height // WIDTH), max(2, cells * width // WIDTH))
        total += amplitude * _enlarged(generator.standard_normal(shape, dtype=np.float32), height, width)[..., None]
        for channel in range(3):
            colour = generator.standard_normal(shape, dtype=np.float32)
            total[..., channel] += 0.4 * amplitude * _enlarged(colour, height, width)
    total += _GRAIN * generator.standard_normal((height, width, 1), dtype=np.float32)
    return np.clip(total, 0, 255).astype(np.uint8)


def _enlarged(values: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    from PIL import Image

    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))
