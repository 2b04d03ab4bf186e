"""Makes `fashion_mnist_5000.npz` from the four Fashion-MNIST files; run once, by hand.

    python -m greedynas_fast.data.sample.build FOLDER

FOLDER holds `train-images-idx3-ubyte.gz` and its three companions, e.g. as installed by the Debian package
`dataset-fashion-mnist`. The choice is the first 400 images of each class of the training part and the first 100 of each
class of the test part, in file order, so that the same files give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from greedynas_fast.data.idx import read_part
from greedynas_fast.data.sample import FILE

TRAIN_PER_CLASS = 400
TEST_PER_CLASS = 100


def main(folder: Path, target: Path = FILE) -> None:
    """Writes the sample.

    Args:
        folder: where the four idx files lie.
        target: the .npz file to write: `{train,test}_images` uint8 [n, 28, 28] and `{train,test}_labels` uint8 [n].
    """
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    for name, part, per_class in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        images, labels = read_part(folder, part)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
        arrays[f"{name}_images"] = images[chosen]
        arrays[f"{name}_labels"] = labels[chosen]
    # Prediction filters (left, up, median) before deflate save 4 % at most: not worth a decoder.
    np.savez_compressed(target, allow_pickle=False, **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m greedynas_fast.data.sample.build FOLDER")
    main(Path(sys.argv[1]))
