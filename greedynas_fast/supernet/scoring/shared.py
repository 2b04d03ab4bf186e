"""All paths in one walk over what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.supernet.batchnorm import batch_norms, batch_statistics, evaluation_mode
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.scoring.bound import MEMORY, MemoryBound, runs_out_of_memory
from greedynas_fast.supernet.scoring.layers import paths_at_once, walk_layers
from greedynas_fast.supernet.scoring.scores import PathScores, Share, Tally, calibration_batches, equal_shares
from greedynas_fast.supernet.scoring.statistics import NodeStatistics, average, borrowed_statistics, num_bytes
from greedynas_fast.supernet.scoring.walk import PrefixTree
from greedynas_fast.supernet.supernet import Supernet

Paths = NDArray[np.int64]  # [m, L]
Walk = Literal["paths", "layers"]


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
    memory: int | MemoryBound = MEMORY,
    poll: Callable[[], None] | None = None,
    walk: Walk = "paths",
) -> PathScores:
    """Score paths; what a score is does not depend on the other paths, nor on the running statistics.

    Layers that several paths begin with alike are computed once, as are equal paths. Statistics are of one path's
    images alone, and on a CPU each path gets the same bits whatever else is scored.

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
            that are kept at a time. It changes how often layers are computed, never a score. Where memory runs out
            before, the bound is halved and fewer paths are scored together; a `MemoryBound` hands that on to later
            calls.
        poll: called before each module that is run; what it raises ends the scoring.
        walk: `paths`: depth first, a path's modules one after the other. `layers`: a layer at a time for all paths that
            the memory is for, as one op-masked layer; fewer launches on a GPU, slower on a CPU, other bits than
            `paths`. For `batch` only.

    Returns:
        Losses and accuracies in the order of the paths.

    Raises:
        InputError: a path that the space does not have, an unknown `bn` or `walk`, or two that do not go together, no
            images, no calibration batches, or not enough memory for a single path.
    """
    if walk not in get_args(Walk) or (walk == "layers" and bn == "recalibrate"):
        raise InputError(f"walk: expected paths, or layers with bn='batch', got {walk!r} with bn={bn!r}")
    shares = equal_shares(images, labels, batch_size, bn)
    batches = calibration_batches([] if calibration is None else list(calibration), bn)
    checked = np.array([net.choices(path) for path in paths], dtype=np.int64).reshape(-1, net.space.num_layers)
    distinct, places = np.unique(checked, axis=0, return_inverse=True)
    bound = memory if isinstance(memory, MemoryBound) else MemoryBound(memory)
    scorer = _Scorer(net, distinct, shares, bound, poll)
    found = scorer.with_batch_statistics(walk) if bn == "batch" else scorer.recalibrated(batches)
    places = places.reshape(-1)
    return PathScores(loss=found.loss[places], accuracy=found.accuracy[places])


class _Scorer:
    """Distinct paths in order, and the modules they run: the stem, a layer's operations, .., the head."""

    def __init__(
        self, net: Supernet, paths: Paths, shares: Sequence[Share], bound: MemoryBound, poll: Callable[[], None] | None
    ) -> None:
        ends = np.zeros((len(paths), 1), dtype=np.int64)
        self.paths = np.concatenate([ends, paths, ends], axis=1)  # [m, L + 2]
        layers = [list(operations) for operations in cast("Iterable[nn.ModuleList]", net.layers)]
        self.modules: list[list[nn.Module]] = [[net.stem], *layers, [net.head]]
        self.shares, self.bound, self.poll = shares, bound, poll
        self.tally = Tally(len(paths), shares[0][0].device)
        used = [
            operations[op]
            for operations, column in zip(self.modules, self.paths.T, strict=True)
            for op in np.unique(column).tolist()
        ]
        self.used = nn.ModuleList(used)  # going through all of a large supernet takes longer than a small path

    def with_batch_statistics(self, walk: Walk) -> PathScores:
        """Scores with the statistics of each share."""
        with evaluation_mode(self.used), batch_statistics(self.used):
            self._in_groups(self._score if walk == "paths" else self._score_by_layers, self._group_end)
        return self._scores()

    def recalibrated(self, batches: Sequence[Tensor]) -> PathScores:
        """Scores with statistics of the calibration batches: for some paths at a time, first these, then the scores."""
        norms = batch_norms(self.used)
        sizes = [[num_bytes(module) for module in operations] for operations in self.modules]

        def calibrate_and_score(start: int, end: int) -> None:
            tree, statistics = PrefixTree(self.paths[start:end]), NodeStatistics()
            for index, images in enumerate(batches):
                average(norms, index)
                for _ in self._walk(tree, images, statistics, index):
                    pass
            self.used.eval()
            self._score(start, end, statistics)

        with evaluation_mode(self.used), borrowed_statistics(norms):
            self._in_groups(calibrate_and_score, partial(self._statistics_end, sizes))
        return self._scores()

    def _in_groups(self, score: Callable[[int, int], None], group_end: Callable[[int], int]) -> None:
        """All paths, some at a time: start .. group_end(start) - 1, and anew fewer where memory does not suffice."""
        start = 0
        while start < len(self.paths):
            end = group_end(start)
            if runs_out_of_memory(partial(score, start, end)):
                self.tally.clear(start, end)
                self.bound.halve(end - start, max(len(labels) for _, labels in self.shares))
            else:
                start = end

    def _score(self, start: int, end: int, statistics: NodeStatistics | None = None) -> None:
        tree = PrefixTree(self.paths[start:end])
        for images, labels in self.shares:
            for row, logits in self._walk(tree, images, statistics):
                self.tally.add(start + row, logits, labels)

    def _score_by_layers(self, start: int, end: int) -> None:
        (stem,), *layers, (head,) = self.modules
        for images, labels in self.shares:
            x = stem(images)
            count = paths_at_once(x, self.bound.num_bytes)
            for first in range(start, end, count):
                tree = PrefixTree(self.paths[first : min(first + count, end)])
                for row, logits in walk_layers(tree, x, layers, head, self.poll):
                    self.tally.add(first + row, logits, labels)

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

        return tree.walk(images, run, self.bound.num_bytes)

    def _group_end(self, start: int) -> int:
        return min(len(self.paths), start + (self.bound.group or len(self.paths)))

    def _statistics_end(self, sizes: list[list[int]], start: int) -> int:
        """As many as have statistics (of `sizes` bytes an operation) that fit into the memory, but one at least."""
        held = 0
        for row in range(start, self._group_end(start)):
            held += sum(of_level[op] for of_level, op in zip(sizes, self.paths[row].tolist(), strict=True))
            if row > start and held > self.bound.num_bytes:
                return row
        return self._group_end(start)

    def _scores(self) -> PathScores:
        return self.tally.scores(sum(len(labels) for _, labels in self.shares))
