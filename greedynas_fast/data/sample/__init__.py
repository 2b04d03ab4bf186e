"""The embedded sample: 5,000 Fashion-MNIST images (4,000 training, 1,000 test), class-balanced.

`build.py` makes the file; `LICENSE` is the licence of the images (MIT, Zalando SE, 2017).
Source: Han Xiao, Kashif Rasul, Roland Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017, https://arxiv.org/abs/1708.07747, https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError

FILE = Path(__file__).with_name("fashion_mnist_5000.npz")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Sample(NamedTuple):
    """The arrays of the sample: images uint8 [n, 28, 28], labels uint8 [n] in 0..9."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]


def load() -> Sample:
    """Reads the sample.

    Raises:
        InputError: the file is missing from the installation or damaged.
    """
    try:
        with np.load(FILE, allow_pickle=False) as arrays:
            return Sample(*(arrays[name] for name in Sample._fields))
    except Exception as error:
        raise InputError(
            f"the embedded sample {FILE} cannot be read ({error}). Install greedynas_fast again."
        ) from error
