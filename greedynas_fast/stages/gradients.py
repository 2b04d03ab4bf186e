"""The gradient of one training step: all its paths, and the whole batch, however processes and passes divide it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from greedynas_fast.config import Precision, TrainConfig
from greedynas_fast.nn import BatchDropout
from greedynas_fast.runtime import World, all_reduce, seed_generators
from greedynas_fast.supernet import GradientReducer, ParameterBank, features_together

Paths = npt.NDArray[np.uint8]

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepResult(NamedTuple):
    """What one step of training tells.

    Attributes:
        loss: mean over the whole batch and the step's paths (with label smoothing), a scalar on the device.
        correct: images of the whole batch that were predicted correctly, in the mean over the paths, a scalar on the
            device.
        images: of the whole batch.
        stop: whether any process was asked to stop.
    """

    loss: Tensor
    correct: Tensor
    images: int
    stop: bool


class Gradients:
    """Computes gradients into a parameter bank.

    Args:
        bank: parameters and gradients.
        config: `batch_size`, `micro_batch`, `precision`, `label_smoothing` and `fair_walk` are used.
        world: the processes that train together.
    """

    def __init__(self, bank: ParameterBank, config: TrainConfig, world: World) -> None:
        self.bank, self._config = bank, config
        self._first_row = world.share(config.batch_size).start
        self._dropout = cast("BatchDropout", cast("nn.Module", bank.net.head).dropout)
        self._passes = num_passes(config.batch_size, config.micro_batch, world)
        self._reducer = GradientReducer(bank, all_reduce) if world.size > 1 else None

    def close(self) -> None:
        """Let go of the bank."""
        if self._reducer is not None:
            self._reducer.close()

    def compute(
        self,
        paths: Paths,
        images: Tensor,
        labels: Tensor,
        seeds: Sequence[int],
        loss_scale: float | None,
        stop: bool,
    ) -> StepResult:
        """Add the gradient of the mean loss over the whole batch, summed over the paths, to that of the bank.

        Args:
            paths: [n, L] operation indices, the same on all ranks; each is trained on the whole batch.
            images: this rank's part of the batch, [B, C, H, W].
            labels: int64 [B].
            seeds: of dropout in this step, one a path, the same on all ranks.
            loss_scale: multiplies the loss whose gradient is taken; None for 1.
            stop: whether this process was asked to stop.

        Returns:
            The same on all ranks.
        """
        config = self._config
        results: list[tuple[Tensor, Tensor, int]] = []
        together = len(paths) if config.fair_walk == "layers" else 1
        last = len(paths) // together * self._passes - 1
        passes = self._forward_passes(paths, seeds, images, labels, together)
        for index, (some_paths, some_seeds, some, their) in enumerate(passes):
            losses = []
            for loss, correct in self._losses(some_paths, some_seeds, some, their):
                losses.append(loss)
                results.append((loss.detach(), correct, len(their)))
            loss = losses[0] if together == 1 else torch.stack(losses).sum()
            if self._reducer is None and not math.isfinite(loss.item()):
                break
            if self._reducer is not None and index == last:
                self._reducer.begin(paths, _tail(results, stop), together)
            weighted(loss, len(their) / config.batch_size, loss_scale).backward()  # type: ignore[no-untyped-call]
        if self._reducer is None:
            return _joined(results, len(paths), stop)
        loss_sum, right, stops = self._reducer.finish()
        loss = loss_sum / (config.batch_size * len(paths))
        return StepResult(loss, right / len(paths), config.batch_size, bool(stops))

    def _forward_passes(
        self, paths: Paths, seeds: Sequence[int], images: Tensor, labels: Tensor, together: int
    ) -> Iterator[tuple[Paths, Sequence[int], Tensor, Tensor]]:
        """Paths, seeds, images and labels of each pass, with dropout told which rows of the batch it sees."""
        total, parts = self._config.batch_size, [(images, labels)]
        if self._passes > 1:
            parts = list(zip(images.tensor_split(self._passes), labels.tensor_split(self._passes), strict=True))
        for start in range(0, len(paths), together):
            own = slice(start, start + together)
            first = self._first_row
            for some, their in parts:
                self._dropout.part = (first, total) if len(their) < total else None
                first += len(their)
                yield paths[own], seeds[own], some, their

    def _losses(
        self, paths: Paths, seeds: Sequence[int], images: Tensor, labels: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each path the mean loss, and how many images are classified correctly."""
        net, smoothing = self.bank.net, self._config.label_smoothing
        # The reducer counts on the hooks of the parameters, past which the bank's gradients would be added.
        bank = None if self._reducer is not None else self.bank
        with autocast(self._config.precision, images.device):
            if self._config.fair_walk == "paths":
                ((path,), (seed,)) = paths.tolist(), seeds
                seed_generators(images.device, seed)
                with nullcontext() if bank is None else bank.adding():
                    return [net.loss(images, tuple(path), labels, smoothing)]
            found = features_together(net, images, paths, bank)
            losses = []
            for seed, features in zip(seeds, found, strict=True):
                seed_generators(images.device, seed)
                losses.append(net.head.loss(features, labels, smoothing))
            return losses


def num_passes(batch_size: int, micro_batch: int | None, world: World) -> int:
    """Forward passes in which each rank goes through its part of a batch, at most `micro_batch` images in each.

    As many on every rank, also where one has an image more: synchronised batch norm talks in each of them.
    """
    most = -(-batch_size // world.size)
    return min(-(-most // (micro_batch or most)), batch_size // world.size)


def image_dtype(precision: Precision) -> torch.dtype:
    """What the first layer makes of images under `autocast`: made so on a GPU, they take half the memory."""
    return AUTOCAST.get(precision, torch.float32)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which activations have this precision, by torch's autocast; none for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


def weighted(loss: Tensor, share: float, loss_scale: float | None = None) -> Tensor:
    """A part's mean loss as its part of the mean over the whole batch."""
    weight = share * (1.0 if loss_scale is None else loss_scale)
    return loss if weight == 1.0 else loss * weight


def _tail(results: list[tuple[Tensor, Tensor, int]], stop: bool) -> Tensor:
    """Sum of losses, number of correct predictions, whether to stop: float32 [3]."""
    loss = sum(loss.float() * count for loss, _, count in results)
    correct = sum(correct.float() for _, correct, _ in results)
    assert isinstance(loss, Tensor)
    assert isinstance(correct, Tensor)
    return torch.stack((loss, correct, torch.tensor(float(stop), device=loss.device)))


def _joined(results: list[tuple[Tensor, Tensor, int]], num_paths: int, stop: bool) -> StepResult:
    if len(results) == 1:
        (loss, correct, count) = results[0]
        return StepResult(loss, correct, count, stop)
    loss_sum, correct, _ = _tail(results, stop)
    count = sum(count for _, _, count in results)
    return StepResult(loss_sum / count, correct / num_paths, count // num_paths, stop)
