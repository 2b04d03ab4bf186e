"""`bench depthwise`: depthwise convolutions of one kernel size, measured as `mixconv` measures its layers."""

from __future__ import annotations

from typing import Any

from . import mixconv
from .timing import Budget

KERNELS = ((3,), (5,), (7,))


def measure(budget: Budget) -> list[dict[str, Any]]:
    """Rows of `depthwise`; see `mixconv.measure`."""
    return mixconv.measure(budget, KERNELS, "depthwise")
