"""After the pipeline: changes of colours and shape, normalisation, erasing; on the CPU or on the device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast.data.augment import normalise
from greedynas_fast.data.changes import apply_changes
from greedynas_fast.data.draws import Change

# Images that one thread finishes at a time.
_CHUNK = 8


@dataclass(frozen=True)
class Finisher:
    """How images leave the back end.

    Attributes:
        mean: float32 [C], of values in 0..1.
        std: float32 [C].
        on_device: whether the pixels lie on a CUDA device, where torch works on the whole batch.
        dtype: of the result on a device; on the CPU it is float32.
    """

    mean: Tensor
    std: Tensor
    on_device: bool
    dtype: torch.dtype

    def finish(
        self,
        pixels: Tensor,
        changes: Sequence[tuple[Change, ...]],
        boxes: npt.NDArray[np.int32] | None,
        threads: Executor,
    ) -> Tensor:
        """Makes a batch of what the pipeline gave.

        Args:
            pixels: uint8 [B, H, W, C]; may be written over.
            changes: of each image.
            boxes: int32 [B, 4], to be filled with the mean colour: top, left, height, width; None: no erasing.
            threads: do the work.

        Returns:
            [B, C, H, W], channels-last in memory, where `pixels` lie.
        """
        batch = self._on_device(pixels, changes, threads) if self.on_device else self._on_cpu(pixels, changes, threads)
        if boxes is not None:
            for image, (top, left, height, width) in zip(batch, boxes, strict=True):
                image[top : top + height, left : left + width] = 0
        return batch.permute(0, 3, 1, 2)

    def _on_device(self, pixels: Tensor, changes: Sequence[tuple[Change, ...]], threads: Executor) -> Tensor:
        changed = [row for row, wanted in enumerate(changes) if wanted]
        if changed:
            # Pillow's changes on the CPU, so that images are the same everywhere; only what changes travels.
            some = pixels[changed].cpu()
            list(threads.map(_change, some.numpy(), [changes[row] for row in changed]))
            pixels[changed] = some.to(pixels.device)
        return normalise(pixels, self.mean.to(pixels.device), self.std.to(pixels.device)).to(self.dtype)

    def _on_cpu(self, batch: Tensor, changes: Sequence[tuple[Change, ...]], threads: Executor) -> Tensor:
        pixels: npt.NDArray[np.uint8] = batch.numpy()
        count, height, width, channels = pixels.shape
        out = np.empty((count, height, width * channels), dtype=np.float32)
        # A whole line of means at a time: numpy is slow where the innermost direction has three elements. The
        # arithmetic is that of `normalise`. Numpy and not torch: torch would start its own threads here.
        mean, std = (np.tile((part * 255).numpy(), width) for part in (self.mean, self.std))

        def work(start: int) -> None:
            for row in range(start, min(start + _CHUNK, count)):
                if changes[row]:
                    _change(pixels[row], changes[row])
                out[row] = pixels[row].reshape(height, -1)
                out[row] -= mean
                out[row] /= std

        list(threads.map(work, range(0, count, _CHUNK)))
        return torch.from_numpy(out.reshape(count, height, width, channels))


def _change(pixels: npt.NDArray[np.uint8], changes: tuple[Change, ...]) -> None:
    """Changes one image [H, W, C] in place."""
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    pixels[...] = np.asarray(apply_changes(image, changes)).reshape(pixels.shape)
