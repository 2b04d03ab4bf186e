"""Means of loss and accuracy over the steps since the last row of metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Window:
    """Figures of steps stay on the device until they are asked for, so that a step waits for nothing."""

    def __init__(self) -> None:
        self.images = 0
        self._loss, self._correct = 0.0, 0.0
        self._steps: list[tuple[Tensor, Tensor, int]] = []  # not in the sums yet
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to measure the speed anew, after something else than training took time."""
        self._timed_images, self._began_s = 0, time.monotonic()

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Take in one step: mean loss, number of correct predictions, number of images."""
        self._steps.append((loss, correct, images))
        self.images += images
        self._timed_images += images

    def means(self) -> dict[str, float]:
        """`loss` and `accuracy` (0..1) over the images of the window."""
        self._add_up()
        images = max(1, self.images)
        return {"loss": self._loss / images, "accuracy": self._correct / images}

    def images_per_s(self) -> float:
        """Speed over the part of the window that this process did."""
        return self._timed_images / max(1e-9, time.monotonic() - self._began_s)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        self._add_up()
        return {"images": self.images, "loss": self._loss, "correct": self._correct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an unfinished window."""
        self.images, self._loss, self._correct = state["images"], state["loss"], state["correct"]

    def _add_up(self) -> None:
        if self._steps:
            losses, correct, images = zip(*self._steps, strict=True)
            sums = zip(_doubles(losses), _doubles(correct), images, strict=True)
            for loss, right, count in sums:
                self._loss += loss * count
                self._correct += right
            self._steps.clear()


def _doubles(scalars: Sequence[Tensor]) -> list[float]:
    """The values, by one message from the device."""
    values: list[float] = torch.stack([scalar.double() for scalar in scalars]).tolist()
    return values
