"""Gradients added up over several processes, while the backward pass goes on.

Only the blocks of the paths that a step trains are sent. They lie apart in the bank, so they are packed into buckets of
whole blocks; a bucket is sent when its last gradient is there. A backward pass runs from the last layer to the first,
and so do the buckets; stem and head, which are one block, come last, and with them some numbers of the caller. Where a
step trains several paths, gradients that earlier passes have left and the last one does not touch are sent before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greedynas_fast.supernet.bank import Block, ParameterBank

# Floats of a bucket: 4 MB, enough to hide what a message costs, few enough that the first are sent early.
BUCKET_FLOATS = 1 << 20


class _Bucket(NamedTuple):
    blocks: list[Block]
    start: int  # of its part of the buffer
    end: int


class GradientReducer:
    """Adds up the gradients of one or more paths over all ranks.

    Ranks must train the same paths at the same step; the order of their messages is the same then.

    Args:
        bank: parameters and gradients.
        all_reduce: begins to add up a float32 tensor over the ranks in place; what it returns has `wait()`.
        bucket_floats: a bucket is full with so many.
    """

    def __init__(
        self, bank: ParameterBank, all_reduce: Callable[[Tensor], Any], bucket_floats: int = BUCKET_FLOATS
    ) -> None:
        self._bank, self._all_reduce, self._bucket_floats = bank, all_reduce, bucket_floats
        self._members = bank.members()
        self._buffer = torch.empty(0, device=bank.grad.device)
        self._tail = self._buffer
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[int, int] = {}  # of a parameter by its id, for those whose gradient is awaited
        self._awaited: list[int] = []  # gradients of each bucket
        self._handles: list[Any] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for parameters in self._members.values()
            for parameter in parameters
        ]

    def close(self) -> None:
        """Watch the bank's parameters no longer."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, paths: NDArray[np.integer], tail: Tensor, last: int = 1) -> None:
        """Send gradients from the next backward pass on, which must be the step's last.

        Args:
            paths: operation indices [n, L] of all paths of the step.
            tail: numbers to add up as well, float32 [k].
            last: the next backward pass is that of so many paths, the last ones.
        """
        coming = dict.fromkeys(reversed(self._bank.active(paths[-last:])))
        blocks = [*(block for block in self._bank.active(paths) if block not in coming), *coming]
        self._tail = tail
        self._buckets = _fill(blocks, self._bucket_floats, len(tail))
        if len(self._buffer) < self._buckets[-1].end:
            self._buffer = self._bank.grad.new_empty(self._buckets[-1].end)
        self._awaited = [
            sum(len(self._members[block]) for block in bucket.blocks if block in coming) for bucket in self._buckets
        ]
        self._bucket_of = {
            id(parameter): index
            for index, bucket in enumerate(self._buckets)
            for block in bucket.blocks
            if block in coming
            for parameter in self._members[block]
        }
        self._handles = []
        self._send_complete()

    def finish(self) -> Tensor:
        """Wait until the bank holds the sums.

        Returns:
            The sums of `tail`, float32 [k].
        """
        self._bucket_of = {}
        while len(self._handles) < len(self._buckets):  # a parameter without a gradient would hold them up
            self._send()
        for handle, bucket in zip(self._handles, self._buckets, strict=True):
            handle.wait()
            start = bucket.start
            for block in bucket.blocks:
                end = start + block.end - block.start
                self._bank.grad[block.start : block.end].copy_(self._buffer[start:end])
                start = end
        last = self._buckets[-1].end
        return self._buffer[last - len(self._tail) : last]

    def _arrived(self, parameter: Tensor) -> None:
        index = self._bucket_of.pop(id(parameter), None)
        if index is None:
            return
        self._awaited[index] -= 1
        self._send_complete()

    def _send_complete(self) -> None:
        """Send the next buckets that wait for nothing.

        In their order, the same on all ranks, whatever the order in which gradients come.
        """
        while len(self._handles) < len(self._buckets) and self._awaited[len(self._handles)] == 0:
            self._send()

    def _send(self) -> None:
        index = len(self._handles)
        bucket = self._buckets[index]
        parts = [self._bank.grad[block.start : block.end] for block in bucket.blocks]
        if index == len(self._buckets) - 1:
            parts.append(self._tail)
        room = self._buffer[bucket.start : bucket.end]
        torch.cat(parts, out=room)
        self._handles.append(self._all_reduce(room))


def _fill(blocks: list[Block], bucket_floats: int, tail: int) -> list[_Bucket]:
    """Blocks in buckets, in their order; `tail` floats more in the last one."""
    buckets: list[_Bucket] = []
    held: list[Block] = []
    start = end = 0
    for block in blocks:
        held.append(block)
        end += block.end - block.start
        if end - start >= bucket_floats and block is not blocks[-1]:
            buckets.append(_Bucket(held, start, end))
            held, start = [], end
    return [*buckets, _Bucket(held, start, end + tail)]
