"""Layers that are laid out for `ops.direct` when they run for the first time, and again when something has changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, has_hooks
from greedynas_fast.ops import direct
from greedynas_fast.ops.rows import threads
from greedynas_fast.ops.watch import Watch

_MODE = ("training", "track_running_stats", "momentum", "eps")
_SHAPES = 2  # that layers stay laid out for: parts of a batch differ by one image where it is not divided evenly
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")

Found = tuple[direct.Laid, list[Tensor]]
"""Layers laid out for an input, and their parameters."""

Slot = tuple[nn.Module, str]
"""A layer and the name of one of its parameters."""


class Prepared(ABC):
    """Layers that stay the same (`backend.LayersSeen`), with what their last calls were laid out as.

    Whether input, tensors and modes still are the same is looked up in each call, and nothing else is.

    Args:
        slots: of all parameters, in the order of `direct.Laid`; None where there is no such layer.
        norms: batch norms, in the order of `direct.Running.which`.
        first_norm: the number of the first one.

    Attributes:
        of_images: x is float32 whatever autocast says.
    """

    of_images = False

    def __init__(self, slots: Sequence[Slot | None], norms: Sequence[nn.BatchNorm2d], first_norm: int = 0) -> None:
        self._slots = slots
        self._norms = norms
        self._first_norm = first_norm
        present = [slot for slot in slots if slot is not None]
        self._complete = all(
            isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
            and all(value is None or (layer, name) in present for name, value in layer._parameters.items())
            for layer, _ in present
        )
        self._parameters: list[tuple[dict[str, Any], str]] = [(layer._parameters, name) for layer, name in present]
        self._buffers: list[tuple[dict[str, Any], str]] = [(norm._buffers, name) for norm in norms for name in _RUNNING]
        self._laid: dict[_Key, _LaidOut] = {}

    @abstractmethod
    def lay_out(
        self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running], bf16: bool
    ) -> direct.Laid | None:
        """Lay out for this input and these parameters, one a slot, each contiguous or channels-last; None: not so.

        Args:
            x: the input.
            parameters: float32.
            running: what is to be updated.
            bf16: see `direct.Laid`.

        Raises:
            InputError: an input that does not fit.
        """

    def run(self, x: Tensor) -> Tensor | None:
        """The result; None where it is not to be had in this way, see `find`."""
        found = self.find(x)
        return None if found is None else direct.run(x, *found)

    def find(self, x: Tensor) -> Found | None:
        """The layers laid out for this input, and their parameters.

        None for other types than float32, or bf16 where that is autocast's, and other modes than training.

        Args:
            x: the input, of which `direct.unwatched` says yes.
        """
        bf16 = hands_on_bf16()
        if bf16 is None or x.dtype is not (torch.bfloat16 if bf16 and not self.of_images else torch.float32):
            return None
        key = _Key(x.shape, x.is_contiguous(memory_format=torch.channels_last), threads(), bf16)
        found = self._laid.get(key)
        if found is None or not found.watch.holds():
            found = self._look(x, key)
            for old in list(self._laid)[: 1 - _SHAPES]:
                self._laid.pop(old, None)
            self._laid[key] = found
        return None if found.laid is None else (found.laid, found.parameters)

    def find_again(self, shape: torch.Size, bf16: bool) -> Found | None:
        """What `find` gave for an input of this shape, channels-last; None where that is too long ago."""
        found = self._laid.get(_Key(shape, True, threads(), bf16))
        if found is None or found.laid is None or not found.watch.holds():
            return None
        return found.laid, found.parameters

    def _look(self, x: Tensor, key: _Key) -> _LaidOut:
        watch = Watch()
        for norm in self._norms:
            watch.entries(norm.__dict__, *_MODE)
        for place, name in (*self._parameters, *self._buffers):
            watch.entries(place, name)
        try:
            parameters = [place[name] for place, name in self._parameters]
            buffers = [value for place, name in self._buffers if (value := place[name]) is not None]
        except KeyError:  # a parametrised layer
            return _LaidOut(watch, [], None)
        for tensor in (*parameters, *buffers):
            watch.place_of(tensor)
        laid = self._lay_out(x, [*parameters, *buffers], key.bf16) if x.numel() and key.channels_last else None
        return _LaidOut(watch, parameters, laid)

    def _lay_out(self, x: Tensor, tensors: list[Tensor], bf16: bool) -> direct.Laid | None:
        dense = all(t.dtype in (torch.float32, torch.int64) and _is_dense(t) for t in tensors)
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
        return self.lay_out(x, [None if slot is None else next(given) for slot in self._slots], running, bf16)


def hands_on_bf16() -> bool | None:
    """Whether layers on the CPU hand bf16 to each other, as torch's autocast has them; None: another type."""
    if not torch.is_autocast_enabled("cpu"):
        return False
    return True if torch.get_autocast_dtype("cpu") is torch.bfloat16 else None


def found_again(block: Fusable, shape: torch.Size, bf16: bool, *layers: nn.Module) -> Found | None:
    """What the last call of a block ran as one operation, and its parameters, if another one would.

    Args:
        block: without hooks, or None is the answer.
        shape: of a channels-last x that `direct.unwatched` says yes to.
        bf16: as `hands_on_bf16` says.
        layers: as for `Fusable.seen_fit`.
    """
    if block.backend == "reference" or has_hooks(block):
        return None
    seen = block.found(*layers)
    prepared: Prepared | None = None if seen is None else seen.prepared
    return None if prepared is None else prepared.find_again(shape, bf16)


class _Key(NamedTuple):
    shape: torch.Size
    channels_last: bool
    threads: int
    bf16: bool


class _LaidOut(NamedTuple):
    """What was laid out for an input; replaced as a whole, so that threads do not see half of it."""

    watch: Watch
    parameters: list[Tensor]
    laid: direct.Laid | None


def _is_dense(tensor: Tensor) -> bool:
    """Whether it is contiguous, or in channels-last memory: of the latter, most layers' weights are both."""
    channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return channels_last or tensor.is_contiguous()


def slots_of(layer: nn.Module) -> tuple[Slot, Slot]:
    """Of weight and bias."""
    return (layer, "weight"), (layer, "bias")
