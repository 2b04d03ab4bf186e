"""What a score is: the sums over images that both ways of scoring end in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from greedynas_fast.errors import InputError

Share = tuple[Tensor, Tensor]
"""Images [n, C, H, W] and labels int64 [n] of one forward pass."""


@dataclass(frozen=True)
class PathScores:
    """Scores of m paths.

    Attributes:
        loss: mean cross entropy, float64 [m].
        accuracy: share of images whose largest logit is the label, float64 [m], 0 .. 1.
    """

    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


class Tally:
    """Sums of losses (float64) and hits of `count` paths, kept on the device until the end."""

    def __init__(self, count: int, device: torch.device) -> None:
        self._loss = torch.zeros(count, dtype=torch.float64, device=device)
        self._hits = torch.zeros(count, dtype=torch.int64, device=device)

    def add(self, row: int, logits: Tensor, labels: Tensor) -> None:
        """Count one share of the images for path `row`."""
        self._loss[row] += functional.cross_entropy(logits.double(), labels, reduction="sum")
        self._hits[row] += (logits.argmax(dim=1) == labels).sum()

    def clear(self, start: int, end: int) -> None:
        """Forget what was counted for paths start .. end - 1."""
        self._loss[start:end] = 0
        self._hits[start:end] = 0

    def scores(self, num_images: int) -> PathScores:
        """Means over the images; the only transfer from the device."""
        loss, hits = torch.stack((self._loss, self._hits.double())).cpu().numpy() / num_images
        return PathScores(loss=loss, accuracy=hits)


def equal_shares(images: Tensor, labels: Tensor, batch_size: int, bn: str) -> list[Share]:
    """Equal shares of at most `batch_size` images, so that no small rest has batch statistics of its own.

    Raises:
        InputError: an unknown `bn`, no images, another number of labels, or shares too small for batch statistics.
    """
    if bn not in ("batch", "recalibrate"):
        raise InputError(f"bn: expected batch or recalibrate, got {bn!r}")
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(f"images: expected as many as labels and at least one, got {len(images)} and {len(labels)}")
    count = -(-len(images) // batch_size)
    if bn == "batch" and len(images) // count < 2:
        raise InputError(f"batch_size: batch statistics need 2 images or more a batch, got {len(images) // count}")
    return list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))


def calibration_batches(calibration: Sequence[Tensor], bn: str) -> Sequence[Tensor]:
    """The batches for `recalibrate`; none for `batch`.

    Raises:
        InputError: there are none for `recalibrate`.
    """
    if bn == "recalibrate" and not calibration:
        raise InputError("calibration: expected at least one batch for bn='recalibrate', got none")
    return calibration if bn == "recalibrate" else ()
