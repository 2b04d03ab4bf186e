"""How long a loop waits for its input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Waiting:
    """Measures the share of the time that goes by while a loop waits for its next item.

    Where the device computes beside the host, time that the host waits for data may be time in which the device is
    busy with earlier steps: then the share is above what training loses.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins now.

        Args:
            clock: seconds, for tests.
        """
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Begin anew, after something else than the loop took time."""
        self._waited_s, self._began_s = 0.0, self._clock()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, the time until each counted as waiting; opening `items` is, too."""
        began_s = self._clock()
        for item in items:
            self._waited_s += self._clock() - began_s
            yield item
            began_s = self._clock()

    def share(self) -> float:
        """Waiting in proportion to all time since the last call, 0..1; begins anew."""
        elapsed_s, waited_s = self._clock() - self._began_s, self._waited_s
        self.restart()
        return waited_s / elapsed_s if elapsed_s > 0 else 0.0
