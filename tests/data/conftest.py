"""Small folders of images for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

MakeImages = Callable[..., Path]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Makes `tmp_path/name/<class>/NNN.<suffix>` with random pixels; returns `tmp_path/name`."""

    def make(
        name: str = "images",
        counts: dict[str, int] | None = None,
        suffix: str = "png",
        size: tuple[int, int] = (20, 14),
        grey: bool = False,
    ) -> Path:
        from PIL import Image

        rng = np.random.default_rng(len(name))
        for label, count in (counts or {"cat": 12, "dog": 12, "emu": 12}).items():
            folder = tmp_path / name / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape = size[::-1] if grey else (*size[::-1], 3)
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.{suffix}")
        return tmp_path / name

    return make
