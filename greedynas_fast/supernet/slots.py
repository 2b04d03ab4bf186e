"""Where tensors lie in a flat one that holds many of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ALIGNMENT = 16
"""Values: every tensor of float32 starts on a 64-byte boundary, as a tensor of its own would."""


def room(tensor: Tensor) -> int:
    """Values that a tensor takes, padding included."""
    return -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT


class Slot(NamedTuple):
    """The place of one tensor.

    Attributes:
        start: its first value.
        shape: of the tensor.
        stride: keeps its memory format.
    """

    start: int
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, start: int) -> Slot:
        """A place for a tensor, without gaps."""
        # A clone that preserves the memory format has dense strides even where the tensor is a view.
        return cls(start, tensor.shape, torch.empty_like(tensor, device="meta").stride())

    def view(self, flat: Tensor) -> Tensor:
        """The tensor as a part of a flat one."""
        return flat.as_strided(self.shape, self.stride, self.start)
