"""SIGTERM and Ctrl-C as a wish that is granted at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from greedynas_fast.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Notes SIGINT and SIGTERM while the context is open, so that a loop can checkpoint and leave cleanly.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python allows no handlers, the
    context does nothing and `requested` stays False.

    Example:
        with Interrupt() as interrupt:
            for step in range(steps):
                if interrupt.requested:
                    ...save
                    raise interrupt.stopped()
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asked the process to stop."""
        return self._signal is not None

    def stopped(self) -> KeyboardInterrupt:
        """What to raise once everything is saved: `Terminated` for SIGTERM, else KeyboardInterrupt."""
        return Terminated() if self._signal == signal.SIGTERM else KeyboardInterrupt()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
