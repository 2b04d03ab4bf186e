"""Whole runs on image files: the embedded sample as JPEGs, read by DALI and by Pillow with torchvision.

    python benchmarks/jpeg_sample.py WORK_DIR [PHOTOGRAPHS_DIR]

Runs `greedynas-fast run` twice with DALI and once with torch; the first two must end with equal weights. With an image
folder of photographs (`train/<class>/*`, such as those of scikit-image's `data`), both back ends decode those too, and
how far the pixels are apart is printed. One JSON document on standard output.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from greedynas_fast.cli import main
from greedynas_fast.data import DataConfig, open_data, sample

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
    for backend in ("dali", "torch"):
        config = DataConfig(root=str(photographs), backend=backend, on_bad_file="skip", max_bad_files=1000)  # type: ignore[arg-type]
        data = open_data(config, resolution=224, in_channels=3, seed=0)
        pixels.append(data.full_train.tensors()[0].double() * 255 * np.mean(data.std))
    difference = (pixels[0] - pixels[1]).abs()
    return {"images": len(difference), "largest": float(difference.max()), "mean": float(difference.mean())}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    # First, as it takes seconds, and a folder that does not do is known before the runs.
    photographs = {"photographs": apart(Path(sys.argv[2]))} if len(sys.argv) > 2 else {}
    write_sample(place / "sample")
    rows = {name: run(place, name, backend) for name, backend in RUNS.items()}
    if rows["dali-1"]["weights_sha256"] != rows["dali-2"]["weights_sha256"]:
        raise SystemExit("two runs through DALI differ")
    print(json.dumps({"runs": rows, **photographs}, indent=1))
