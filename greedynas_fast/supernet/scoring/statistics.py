"""Running statistics a node of the prefix tree, recomputed by the rules of `batchnorm.recalibrate`.

There a batch norm's new statistics are averages over the calibration batches while everything before it normalises by
the batch; so they depend on the choices before it alone, and paths share them as far as they share these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from greedynas_fast.supernet.batchnorm import batch_norms

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class _Lent(NamedTuple):
    norm: _BatchNorm
    mean: Tensor
    variance: Tensor


class NodeStatistics:
    """Statistics of the batch norms of nodes, lent to the shared modules one node after the other."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], list[_Lent]] = {}
        self._seen: dict[tuple[int, int], int] = {}  # the last batch that a node has taken up

    def lend(self, node: tuple[int, int], module: nn.Module, batch: int | None) -> None:
        """Have the batch norms of `module` use the statistics of `node`; a new node begins as a reset batch norm does.

        Args:
            node: (level, path that names it).
            module: of this node, within `borrowed_statistics`.
            batch: number of the calibration batch that the module is about to see; a node that is computed again for
                the same batch does not count it again. None in eval mode.
        """
        lent = self._nodes.get(node)
        if lent is None:
            lent = [_reset(norm) for norm in batch_norms(module)]
            self._nodes[node] = lent
        counts = batch is not None and self._seen.get(node) != batch
        if batch is not None:
            self._seen[node] = batch
        for norm, mean, variance in lent:
            # Directly, because a module takes microseconds to find out what kind of attribute is being set.
            norm._buffers["running_mean"], norm._buffers["running_var"] = mean, variance
            norm.track_running_stats = counts or batch is None


@contextmanager
def borrowed_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Within the context `NodeStatistics` may lend to these batch norms; at exit they have their own again."""
    kept = [
        (norm, norm.momentum, norm.track_running_stats, [norm._buffers[name] for name in _BUFFERS]) for norm in norms
    ]
    try:
        for norm in norms:
            norm._buffers["num_batches_tracked"] = None  # `average` says which share a batch has
        yield
    finally:
        for norm, momentum, tracks, buffers in kept:
            norm.momentum, norm.track_running_stats = momentum, tracks
            norm._buffers.update(zip(_BUFFERS, buffers, strict=True))


def average(norms: list[_BatchNorm], batch: int) -> None:
    """Have batch norms take up the statistics of calibration batch number `batch`, from 0, with equal weights."""
    for norm in norms:
        norm.training, norm.momentum = True, 1.0 / (batch + 1)


def num_bytes(module: nn.Module) -> int:
    """Bytes of the statistics of a node of this module."""
    return sum(value.numel() * value.element_size() for norm in batch_norms(module) for value in _running(norm))


def _running(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean: Any = norm.running_mean
    variance: Any = norm.running_var
    return mean, variance


def _reset(norm: _BatchNorm) -> _Lent:
    mean, variance = _running(norm)
    return _Lent(norm, torch.zeros_like(mean), torch.ones_like(variance))
