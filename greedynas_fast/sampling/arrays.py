"""Answers of scoring functions as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_array(values: Any) -> npt.NDArray[Any]:
    """An array from an array, a sequence or a tensor, which may need gradients or lie on another device."""
    return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
