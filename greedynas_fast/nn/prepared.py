"""Layers that are laid out for `ops.direct` when they run for the first time, and again when something has changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from greedynas_fast.ops import direct
from greedynas_fast.ops.rows import threads

_MODE = attrgetter("training", "track_running_stats", "momentum", "eps")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")

Slot = tuple[nn.Module, str]
"""A layer and the name of one of its parameters."""


class Prepared(ABC):
    """Layers that stay the same (`backend.LayersSeen`), with what their last call was laid out as.

    Whether input, tensors and modes still are the same is looked up in each call, and nothing else is.

    Args:
        slots: of all parameters, in the order of `direct.Laid`; None where there is no such layer.
        norms: batch norms, in the order of `direct.Running.which`.
        first_norm: the number of the first one.
    """

    def __init__(self, slots: Sequence[Slot | None], norms: Sequence[nn.BatchNorm2d], first_norm: int = 0) -> None:
        self._slots = slots
        self._norms = norms
        self._first_norm = first_norm
        present = [slot for slot in slots if slot is not None]
        self._complete = all(
            isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
            and all(value is None or (layer, name) in present for name, value in layer._parameters.items())
            for layer, _ in present
        )
        self._parameters: list[tuple[dict[str, Any], str]] = [(layer._parameters, name) for layer, name in present]
        self._buffers: list[tuple[dict[str, Any], str]] = [(norm._buffers, name) for norm in norms for name in _RUNNING]
        self._last = _Last((), [], [], None)

    @abstractmethod
    def lay_out(self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running]) -> direct.Laid:
        """Lay out for this input and these parameters, one a slot.

        Raises:
            InputError: an input that does not fit.
        """

    def run(self, x: Tensor) -> Tensor | None:
        """The result; None where it is not to be had in this way.

        That is for other types than float32, other modes than training, and whatever wants to see operators.
        """
        if x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu") or not direct.unwatched(x):
            return None
        try:
            parameters = [place[name] for place, name in self._parameters]
            buffers = [value for place, name in self._buffers if (value := place[name]) is not None]
        except KeyError:  # a parametrised layer
            return None
        tensors = [*parameters, *buffers]
        addresses = [tensor.data_ptr() for tensor in tensors]
        key = (x.shape, x.is_contiguous(memory_format=torch.channels_last), threads(), *map(_MODE, self._norms))
        last = self._last
        if key != last.key or addresses != last.addresses or not all(map(is_, tensors, last.tensors)):
            laid = self._lay_out(x, tensors) if x.numel() and key[1] else None
            last = self._last = _Last(key, tensors, addresses, laid)
        return None if last.laid is None else direct.run(x, last.laid, parameters)

    def _lay_out(self, x: Tensor, tensors: list[Tensor]) -> direct.Laid | None:
        dense = all(t.dtype in (torch.float32, torch.int64) and t.is_contiguous() for t in tensors)
        if not (self._complete and dense and direct.unwatched(*tensors)):
            return None
        running = []
        for which, norm in enumerate(self._norms, start=self._first_norm):
            if not norm.training:
                return None
            if norm.track_running_stats:
                values: list[Any] = [norm._buffers[name] for name in _RUNNING]
                if norm.momentum is None or any(value is None for value in values):
                    return None
                running.append(direct.Running(which, norm.momentum, *(value.data_ptr() for value in values)))
        given = iter(tensors)
        return self.lay_out(x, [None if slot is None else next(given) for slot in self._slots], running)


class _Last(NamedTuple):
    """What was laid out, and for what; replaced as a whole, so that threads do not see half of it."""

    key: tuple[Any, ...]
    tensors: list[Tensor]
    addresses: list[int]
    laid: direct.Laid | None


def slots_of(layer: nn.Module) -> tuple[Slot, Slot]:
    """Of weight and bias."""
    return (layer, "weight"), (layer, "bias")
