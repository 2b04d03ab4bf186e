"""How much of the time one kind of work takes."""

from __future__ import annotations

import time
from types import TracebackType


class Stopwatch:
    """Adds up the time inside `with` blocks.

    Attributes:
        elapsed_s: seconds so far.
    """

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self._made_s = time.monotonic()

    def __enter__(self) -> None:
        self._began_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.elapsed_s += time.monotonic() - self._began_s

    def summary(self) -> str:
        """Seconds, and their share of the time since the stopwatch was made, in words."""
        share = self.elapsed_s / max(1e-9, time.monotonic() - self._made_s)
        return f"{self.elapsed_s:.2f} s, {share:.2%} of the time"
