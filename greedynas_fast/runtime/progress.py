"""Progress for people: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

Field = int | float | str | None


class Progress:
    """Shows how far a stage is. Nothing that a run computes depends on it.

    Example:
        with Progress("train", total=1000, unit_size=96) as progress:
            progress.update(step, loss=loss, q=q)
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        start: int = 0,
        unit_size: int | None = None,
        quiet: bool = False,
        stream: TextIO | None = None,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the display; it appears with the context.

        Args:
            description: the name of the stage.
            total: the number of steps in all, earlier processes included.
            start: the steps done before this process.
            unit_size: images a step; gives the field `images/s`.
            quiet: write to standard error only, so that standard output stays free for a JSON document.
            stream: where to write; standard output (standard error if `quiet`) by default.
            interval_s: seconds between two plain lines.
            clock: seconds, for tests.
        """
        self.description = description
        self.total = total
        self._start, self._unit_size, self._clock = start, unit_size, clock
        self._stream = stream if stream is not None else (sys.stderr if quiet else sys.stdout)
        self._began = clock()
        self._view: _View = (
            _Live(self._stream, description, total)
            if self._stream.isatty()
            else _Plain(self._stream, interval_s, clock)
        )

    def __enter__(self) -> Self:
        self._began = self._clock()
        self._view.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.close()

    def update(self, step: int, **fields: Field) -> None:
        """Shows that `step` steps are done; fields keep the order given, and None shows as a dash."""
        shown = {name: format_field(value) for name, value in fields.items()}
        elapsed_s = self._clock() - self._began
        done = step - self._start
        if done > 0 and elapsed_s > 0:
            if self._unit_size is not None:
                shown["images/s"] = f"{done * self._unit_size / elapsed_s:.0f}"
            shown["left"] = format_seconds((self.total - step) * elapsed_s / done)
        text = "  ".join(f"{name} {value}" for name, value in shown.items())
        self._view.show(step, f"{self.description} {step}/{self.total}  {text}".rstrip(), text, step >= self.total)

    def message(self, text: str) -> None:
        """Shows a sentence that stays, e.g. a notice or a filter update."""
        self._view.message(text)


def format_field(value: Field) -> str:
    """A short text: four significant digits for a float, a dash for None."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """A duration as `45s`, `3m07s` or `2h05m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _View(Protocol):
    def open(self) -> None: ...

    def close(self) -> None: ...

    def show(self, step: int, line: str, fields: str, last: bool) -> None: ...

    def message(self, text: str) -> None: ...


class _Plain:
    """A line at the first step, every `interval_s` seconds, and at the last step."""

    def __init__(self, stream: TextIO, interval_s: float, clock: Callable[[], float]) -> None:
        self._stream, self._interval_s, self._clock = stream, interval_s, clock
        self._next_s: float | None = None

    def open(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to take down."""

    def show(self, step: int, line: str, fields: str, last: bool) -> None:
        now = self._clock()
        if self._next_s is None or now >= self._next_s or last:
            self._next_s = now + self._interval_s
            self.message(line)

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Live:
    """A bar drawn by rich."""

    def __init__(self, stream: TextIO, description: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        text = TextColumn("{task.fields[text]}", markup=False)
        self._progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            text,
            console=Console(file=stream),
        )
        options: Mapping[str, Any] = {"total": total, "text": ""}
        self._task = self._progress.add_task(description, **options)

    def open(self) -> None:
        self._progress.start()

    def close(self) -> None:
        self._progress.stop()

    def show(self, step: int, line: str, fields: str, last: bool) -> None:
        self._progress.update(self._task, completed=step, text=fields)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)
