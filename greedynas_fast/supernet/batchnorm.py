"""Batch norm for weights that are shared: running statistics of a supernet fit no single path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from greedynas_fast.errors import InputError


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """All batch norms of `module`, in the order of its parts."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the context; at exit every part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """Within the context every batch norm of `module` normalises by the batch and leaves its running statistics alone.

    Other layers keep their mode (dropout stays off in eval mode). Everything is restored at exit, also after an error.

    Args:
        module: whose batch norms are meant; do not change its mode within the context.
    """
    norms = batch_norms(module)
    flags = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, tracks) in zip(norms, flags, strict=True):
            norm.training, norm.track_running_stats = training, tracks


@torch.no_grad()
def recalibrate(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the running statistics by their averages over `images`, each batch with equal weight; then eval mode.

    Means are averages of batch means, variances averages of unbiased batch variances, in one pass: layers before a
    batch norm normalise by the batch meanwhile. For stand-alone networks; extract one from a supernet first.

    Args:
        network: called as `network(batch)`.
        images: batches [N, C, H, W] on the device of the network.

    Raises:
        InputError: no batches. The network is then as it was.
    """
    batches = iter(images)
    first = next(batches, None)
    if first is None:
        raise InputError("images: expected at least one batch to recalibrate batch norm, got none")
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's cumulative average
            norm.train()
        network(first)
        for batch in batches:
            network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
