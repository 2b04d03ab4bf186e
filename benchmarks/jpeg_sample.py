"""Whole runs on image files: the embedded sample as JPEGs, read by DALI and by Pillow with torchvision.

    pip install scikit-image
    python benchmarks/jpeg_sample.py WORK_DIR

Both back ends first decode colour photographs that come with scikit-image, and how far the pixels are apart is printed.
Then `greedynas-fast run` runs twice with DALI and once with torch; the first two must end with equal weights. One JSON
document on standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
from PIL import Image

from greedynas_fast.cli import main
from greedynas_fast.data import DataConfig, open_data, sample

# Those that lie in the package itself.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
BACKENDS: tuple[Literal["dali", "torch"], ...] = ("dali", "torch")
RUNS = {"dali-1": "dali", "dali-2": "dali", "torch": "torch"}


def write_sample(root: Path) -> None:
    """The sample's images as grey JPEGs, `train/<class>/*.jpg` and `val/<class>/*.jpg`."""
    arrays = sample.load()
    parts = (("train", arrays.train_images, arrays.train_labels), ("val", arrays.test_images, arrays.test_labels))
    for part, images, labels in parts:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / part / sample.CLASS_NAMES[label].replace("/", "-")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)).save(folder / f"{index:05d}.jpg", quality=95)


def write_photographs(root: Path) -> None:
    """Colour photographs as JPEGs of several sizes, `train/<half>/*.jpg`: a data set needs classes."""
    for name in PHOTOGRAPHS:
        whole = Image.fromarray(getattr(skimage.data, name)())
        for half, left in (("left", 0), ("right", whole.width // 2)):
            folder = root / "train" / half
            folder.mkdir(parents=True, exist_ok=True)
            part = whole.crop((left, 0, left + whole.width // 2, whole.height))
            for share in (1.0, 0.75, 0.5):
                size = round(part.width * share), round(part.height * share)
                part.resize(size).save(folder / f"{name}-{size[0]}.jpg", quality=90)


def run(work: Path, name: str, backend: str) -> dict[str, Any]:
    """One whole run; its figures and the hash of the retrained weights."""
    folder, began_s = work / name, time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        code = main(["run", "--data", str(work / "sample"), "--data-backend", backend, "--run", str(folder)])
    if code != 0:
        raise SystemExit(code)
    result = json.loads((folder / "result.json").read_text())
    config = json.loads((folder / "retrain/config.json").read_text())
    return {
        "backend": backend,
        "seconds": round(time.monotonic() - began_s, 1),
        "top1": result["top1"],
        "path": result["path"],
        "weights_sha256": config["weights_sha256"],
    }


def apart(photographs: Path) -> dict[str, Any]:
    """Largest and mean difference of what the back ends give of photographs, in grey values of 255."""
    pixels = []
    for backend in BACKENDS:
        config = DataConfig(root=str(photographs), backend=backend)
        data = open_data(config, resolution=224, in_channels=3, seed=0)
        pixels.append(data.full_train.tensors()[0].double() * 255 * np.mean(data.std))
    difference = (pixels[0] - pixels[1]).abs()
    return {"images": len(difference), "largest": float(difference.max()), "mean": float(difference.mean())}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    write_photographs(place / "photographs")
    differences = apart(place / "photographs")
    write_sample(place / "sample")
    rows = {name: run(place, name, backend) for name, backend in RUNS.items()}
    if rows["dali-1"]["weights_sha256"] != rows["dali-2"]["weights_sha256"]:
        raise SystemExit("two runs through DALI differ")
    print(json.dumps({"runs": rows, "photographs": differences}, indent=1))
