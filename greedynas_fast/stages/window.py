"""Means of loss and accuracy over the steps since the last row of metrics."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor


class Window:
    """Sums stay on the device until they are asked for, so that a step waits for nothing."""

    def __init__(self) -> None:
        self.images = 0
        self._loss: Tensor | float = 0.0
        self._correct: Tensor | float = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to measure the speed anew, after something else than training took time."""
        self._timed_images, self._began_s = 0, time.monotonic()

    def add(self, loss: Tensor, correct: Tensor, images: int) -> None:
        """Take in one step: mean loss, number of correct predictions, number of images."""
        self._loss = self._loss + loss.double() * images
        self._correct = self._correct + correct.double()
        self.images += images
        self._timed_images += images

    def means(self) -> dict[str, float]:
        """`loss` and `accuracy` (0..1) over the images of the window."""
        images = max(1, self.images)
        return {"loss": float(self._loss) / images, "accuracy": float(self._correct) / images}

    def images_per_s(self) -> float:
        """Speed over the part of the window that this process did."""
        return self._timed_images / max(1e-9, time.monotonic() - self._began_s)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"images": self.images, "loss": float(self._loss), "correct": float(self._correct)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with an unfinished window."""
        self.images, self._loss, self._correct = state["images"], state["loss"], state["correct"]
