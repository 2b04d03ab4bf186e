"""Copies of nested states in main memory, taken at once, so that the original may change while the copy is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage


class Snapshots:
    """Takes one snapshot at a time; the next one overwrites the last, in the same memory where sizes are the same.

    Memory is copied as it lies: tensors that are views of one another stay so, and a snapshot takes as many bytes in a
    file as its original.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], UntypedStorage] = {}  # by (which one of the state, bytes)

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state` on the CPU that shares nothing with it.

        Args:
            state: nested dicts, lists and tuples of dense tensors and plain values.

        Returns:
            The same nesting; valid until the next call.
        """
        copies: dict[tuple[int, int], UntypedStorage] = {}  # by (address, bytes)
        buffers: dict[tuple[int, int], UntypedStorage] = {}
        devices: set[torch.device] = set()

        def copied(storage: UntypedStorage) -> UntypedStorage:
            place = (storage.data_ptr(), storage.nbytes())
            if place not in copies:
                key = (len(copies), storage.nbytes())
                buffers[key] = copies[place] = self._buffers.get(key) or _empty(storage)
                copies[place].copy_(storage, non_blocking=True)
                devices.add(storage.device)
            return copies[place]

        result: dict[str, Any] = _mapped(state, copied)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        self._buffers = buffers
        return result


def _empty(storage: UntypedStorage) -> UntypedStorage:
    """Memory for a copy; from a GPU it is copied to fastest if the system may not move it."""
    memory = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
    return memory.untyped_storage()


def _mapped(value: Any, copied: Callable[[UntypedStorage], UntypedStorage]) -> Any:
    """The nesting with new containers, and tensors over copied memory."""
    if isinstance(value, Tensor):
        copy = torch.empty(0, dtype=value.dtype)
        return copy.set_(copied(value.untyped_storage()), value.storage_offset(), value.shape, value.stride())
    if isinstance(value, dict):
        return type(value)((key, _mapped(item, copied)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, copied) for item in value)
    return value
