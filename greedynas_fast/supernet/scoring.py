"""Validation loss and accuracy of many paths on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.supernet.batchnorm import batch_statistics, recalibrate
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.supernet import Supernet, extract


@dataclass(frozen=True)
class PathScores:
    """Scores of m paths.

    Attributes:
        loss: mean cross entropy, float64 [m].
        accuracy: share of images whose largest logit is the label, float64 [m], 0 .. 1.
    """

    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the context; at exit every part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _evaluate(forward: Callable[[Tensor], Tensor], chunks: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Mean loss and accuracy over all images; sums in float64, one transfer from the device."""
    device = chunks[0][0].device
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for images, labels in chunks:
        logits = forward(images)
        loss += functional.cross_entropy(logits.double(), labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
    total = sum(len(labels) for _, labels in chunks)
    loss_sum, correct_sum = torch.stack((loss, correct.double())).tolist()
    return loss_sum / total, correct_sum / total


def _chunks(images: Tensor, labels: Tensor, batch_size: int, bn: str) -> list[tuple[Tensor, Tensor]]:
    """Equal shares of at most `batch_size` images, so that no small rest has batch statistics of its own."""
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(f"images: expected as many as labels and at least one, got {len(images)} and {len(labels)}")
    count = -(-len(images) // batch_size)
    if bn == "batch" and len(images) // count < 2:
        raise InputError(f"batch_size: batch statistics need 2 images or more a batch, got {len(images) // count}")
    return list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))


@torch.no_grad()
def score_paths(
    net: Supernet,
    paths: Sequence[Path] | NDArray[np.integer] | Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    bn: Literal["batch", "recalibrate"] = "batch",
    calibration: Iterable[Tensor] | None = None,
) -> PathScores:
    """Score paths one after the other; a score does not depend on the other paths, nor on the running statistics.

    Args:
        net: the supernet; its weights, statistics and mode are afterwards as they were. Dropout is off.
        paths: [m, L] operation indices.
        images: [n, C, H, W] on the device of the supernet.
        labels: int64 [n], on the same device.
        batch_size: images a forward pass at most. The n images are cut into equal shares.
        bn: `batch`: batch norm uses the statistics of each share. `recalibrate`: the sub-network is extracted, its
            running statistics are recomputed on `calibration`, and it is evaluated in eval mode.
        calibration: batches [N, C, H, W] for `recalibrate`; gone through once a path.

    Returns:
        Losses and accuracies in the order of the paths.

    Raises:
        InputError: a path that the space does not have, an unknown `bn`, no images, or no calibration batches.
    """
    if bn not in ("batch", "recalibrate"):
        raise InputError(f"bn: expected batch or recalibrate, got {bn!r}")
    chunks = _chunks(images, labels, batch_size, bn)
    batches = [] if calibration is None else list(calibration)
    if bn == "recalibrate" and not batches:
        raise InputError("calibration: expected at least one batch for bn='recalibrate', got none")
    checked = [net.choices(path) for path in paths]
    scores = np.empty((len(checked), 2), dtype=np.float64)
    with ExitStack() as stack:
        if bn == "batch":
            stack.enter_context(_evaluation_mode(net))
            stack.enter_context(batch_statistics(net))
        for row, path in enumerate(checked):
            if bn == "batch":
                scores[row] = _evaluate(partial(net, path=path), chunks)
            else:
                network = extract(net, path)
                recalibrate(network, batches)
                scores[row] = _evaluate(network, chunks)
    return PathScores(loss=scores[:, 0].copy(), accuracy=scores[:, 1].copy())
