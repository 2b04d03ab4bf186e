"""All paths in one walk over what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.supernet.batchnorm import batch_norms, batch_statistics, evaluation_mode
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.scoring.scores import PathScores, Share, Tally, calibration_batches, equal_shares
from greedynas_fast.supernet.scoring.statistics import NodeStatistics, average, borrowed_statistics, num_bytes
from greedynas_fast.supernet.scoring.walk import PrefixTree
from greedynas_fast.supernet.supernet import Supernet

Paths = NDArray[np.int64]  # [m, L]

MEMORY = 1 << 30


@torch.inference_mode()
def score_paths(
    net: Supernet,
    paths: Sequence[Path] | NDArray[np.integer] | Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    bn: Literal["batch", "recalibrate"] = "batch",
    calibration: Iterable[Tensor] | None = None,
    memory: int = MEMORY,
    poll: Callable[[], None] | None = None,
) -> PathScores:
    """Score paths; what a score is does not depend on the other paths, nor on the running statistics.

    Layers that several paths begin with alike are computed once, as are equal paths. Nothing is computed on images of
    several paths at once, so each path gets the same calls, and on a CPU the same bits, whatever else is scored.

    Args:
        net: the supernet; its weights, statistics and mode are afterwards as they were, also after an error. Dropout is
            off.
        paths: [m, L] operation indices.
        images: [n, C, H, W] on the device of the supernet.
        labels: int64 [n], on the same device.
        batch_size: images a forward pass at most. The n images are cut into equal shares.
        bn: `batch`: batch norm uses the statistics of each share. `recalibrate`: those that `batchnorm.recalibrate`
            gives the path's extracted network on `calibration`, in eval mode.
        calibration: batches [N, C, H, W] for `recalibrate`.
        memory: bytes of activations that are held at most for the paths that share them, beside what a forward pass of
            one path takes; 0 shares nothing. For `recalibrate` also the most bytes of statistics, of at least one path,
            that are kept at a time. It changes how often layers are computed, never a score.
        poll: called before each module that is run; what it raises ends the scoring.

    Returns:
        Losses and accuracies in the order of the paths.

    Raises:
        InputError: a path that the space does not have, an unknown `bn`, no images, or no calibration batches.
    """
    shares = equal_shares(images, labels, batch_size, bn)
    batches = calibration_batches([] if calibration is None else list(calibration), bn)
    if memory < 0:
        raise InputError(f"memory: expected 0 bytes or more, got {memory}")
    checked = np.array([net.choices(path) for path in paths], dtype=np.int64).reshape(-1, net.space.num_layers)
    distinct, places = np.unique(checked, axis=0, return_inverse=True)
    scorer = _Scorer(net, distinct, shares, memory, poll)
    found = scorer.with_batch_statistics() if bn == "batch" else scorer.recalibrated(batches)
    places = places.reshape(-1)
    return PathScores(loss=found.loss[places], accuracy=found.accuracy[places])


class _Scorer:
    """Distinct paths in order, and the modules they run: the stem, a layer's operations, .., the head."""

    def __init__(
        self, net: Supernet, paths: Paths, shares: Sequence[Share], memory: int, poll: Callable[[], None] | None
    ) -> None:
        ends = np.zeros((len(paths), 1), dtype=np.int64)
        self.paths = np.concatenate([ends, paths, ends], axis=1)  # [m, L + 2]
        layers = [list(operations) for operations in cast("Iterable[nn.ModuleList]", net.layers)]
        self.modules: list[list[nn.Module]] = [[net.stem], *layers, [net.head]]
        self.shares, self.memory, self.poll = shares, memory, poll
        self.tally = Tally(len(paths), shares[0][0].device)
        used = [
            operations[op]
            for operations, column in zip(self.modules, self.paths.T, strict=True)
            for op in np.unique(column).tolist()
        ]
        self.used = nn.ModuleList(used)  # going through all of a large supernet takes longer than a small path

    def with_batch_statistics(self) -> PathScores:
        """Scores with the statistics of each share."""
        tree = PrefixTree(self.paths)
        with evaluation_mode(self.used), batch_statistics(self.used):
            for images, labels in self.shares:
                for row, logits in self._walk(tree, images):
                    self.tally.add(row, logits, labels)
        return self._scores()

    def recalibrated(self, batches: Sequence[Tensor]) -> PathScores:
        """Scores with statistics of the calibration batches: for some paths at a time, first these, then the scores."""
        norms = batch_norms(self.used)
        with evaluation_mode(self.used), borrowed_statistics(norms):
            for start, end in self._chunks():
                tree, statistics = PrefixTree(self.paths[start:end]), NodeStatistics()
                for index, images in enumerate(batches):
                    average(norms, index)
                    for _ in self._walk(tree, images, statistics, index):
                        pass
                self.used.eval()
                for images, labels in self.shares:
                    for row, logits in self._walk(tree, images, statistics):
                        self.tally.add(start + row, logits, labels)
        return self._scores()

    def _walk(
        self, tree: PrefixTree, images: Tensor, statistics: NodeStatistics | None = None, batch: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """(path, logits) of all paths; `batch` is the number of the calibration batch that the images are."""
        choices = tree.paths.tolist()

        def run(level: int, node: int, x: Tensor) -> Tensor:
            if self.poll is not None:
                self.poll()
            module = self.modules[level][choices[node][level]]
            if statistics is not None:
                statistics.lend((level, node), module, batch)
            y: Tensor = module(x)
            return y

        return tree.walk(images, run, self.memory)

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Paths start .. end - 1 whose statistics fit into the memory."""
        sizes = [[num_bytes(module) for module in operations] for operations in self.modules]
        start = held = 0
        for row, path in enumerate(self.paths.tolist()):
            size = sum(of_level[op] for of_level, op in zip(sizes, path, strict=True))
            if row > start and held + size > self.memory:
                yield start, row
                start, held = row, 0
            held += size
        if len(self.paths):
            yield start, len(self.paths)

    def _scores(self) -> PathScores:
        return self.tally.scores(sum(len(labels) for _, labels in self.shares))
