"""A folder of image files of every kind that turns up in the wild: most usable, some damaged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Transpose

# How an upright image is stored under each EXIF orientation: what a viewer does to it, undone.
_STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


class Corpus(NamedTuple):
    """What `write_corpus` wrote; all names are paths below `root`.

    Attributes:
        root: a folder with the classes `cat` and `dog`.
        pictures: files that show `picture`, in colour (`RGB`) or grey (`L`).
        dots: usable files that do not show it: a single pixel.
        bad: files that cannot be used, and a word of the reason.
    """

    root: Path
    pictures: dict[str, str]
    dots: list[str]
    bad: dict[str, str]

    @property
    def usable(self) -> int:
        """The number of usable files."""
        return len(self.pictures) + len(self.dots)


def picture(mode: str = "RGB") -> Image.Image:
    """48 x 36 smooth pixels without any symmetry."""
    corners = np.random.default_rng(5).integers(20, 236, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((48, 36), Image.Resampling.BICUBIC).convert(mode)


def write_corpus(root: Path) -> Corpus:
    """Writes all the files into `root/cat` and `root/dog`."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    pictures = dict.fromkeys(_colour(root / "cat") + _turned(root / "dog"), "RGB")
    pictures |= dict.fromkeys(_grey(root / "dog"), "L")
    Image.new("RGB", (1, 1), (200, 10, 30)).save(root / "cat" / "dot.png")
    Image.new("L", (1, 1), 90).save(root / "dog" / "dot.jpg")
    return Corpus(root, pictures, ["cat/dot.png", "dog/dot.jpg"], _bad(root / "cat"))


def _colour(folder: Path) -> list[str]:
    image = picture()
    image.save(folder / "plain.jpg", quality=95)
    image.save(folder / "progressive.jpg", quality=95, progressive=True)
    image.save(folder / "shout.JPEG", quality=95)
    image.save(folder / "name with spaces.jpg", quality=95)
    image.save(folder / "größe 写真.jpg", quality=95)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.save(folder / "plain.png")
    image.save(folder / "plain.webp", lossless=True)
    image.save(folder / "plain.bmp")
    image.quantize(128).save(folder / "palette.png", transparency=bytes(range(128)))
    image.quantize(128).save(folder / "palette.gif")
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    clear.save(folder / "transparent.png")
    return [f"{folder.name}/{path.name}" for path in sorted(folder.iterdir())]


def _turned(folder: Path) -> list[str]:
    names = []
    for orientation, how in _STORED.items():
        stored = picture() if how is None else picture().transpose(how)
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"turned{orientation}.{'png' if orientation == 7 else 'jpg'}"
        stored.save(folder / name, exif=exif, quality=95)
        names.append(f"{folder.name}/{name}")
    return names


def _grey(folder: Path) -> list[str]:
    grey = picture("L")
    grey.save(folder / "grey.jpg", quality=95)
    wide: npt.NDArray[np.uint16] = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(wide).save(folder / "16bit.png")
    Image.fromarray(wide).save(folder / "16bit.tif")
    Image.fromarray(wide).save(folder / "16bit.pgm")
    grey.convert("LA").save(folder / "grey transparent.png")
    return [
        f"{folder.name}/{name}" for name in ("grey.jpg", "16bit.png", "16bit.tif", "16bit.pgm", "grey transparent.png")
    ]


def _bad(folder: Path) -> dict[str, str]:
    whole = (folder / "plain.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "most.jpg").write_bytes(whole[:-200])
    (folder / "half.png").write_bytes((folder / "plain.png").read_bytes()[:600])
    (folder / "nothing.jpg").write_bytes(b"")
    (folder / "letter.jpg").write_text("Dear reader, this is a text.\n" * 30)
    Image.fromarray(np.asarray(picture("L"), dtype=np.float32)).save(folder / "floats.tif")
    reasons = {
        "half.jpg": "runcated",
        "most.jpg": "runcated",
        "half.png": "runcated",
        "nothing.jpg": "it is empty",
        "letter.jpg": "it is not an image",
        "floats.tif": "mode F",
    }
    return {f"{folder.name}/{name}": reason for name, reason in reasons.items()}
