"""`metrics.jsonl`: one strict JSON object a line, and the same numbers for tensorboard where it is installed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from greedynas_fast.errors import InputError
from greedynas_fast.runtime.atomic import atomic_write, explain_write_error
from greedynas_fast.runtime.lines import append_bytes


class MetricsLog:
    """The rows of one run, appended and flushed one by one.

    Every row has the keys `stage`, `kind` and `step`. Numbers that JSON does not know (NaN, infinities) become null.
    """

    def __init__(
        self, path: str | Path, events: str | Path | None = None, notify: Callable[[str], None] | None = None
    ) -> None:
        """Opens `path` for appending; the file is made if missing, its folder must exist.

        A last row that a kill has torn is removed.

        Args:
            path: the file of JSON lines.
            events: a folder for tensorboard, or None for no events. Each stage gets a folder in it.
            notify: takes the one sentence that says tensorboard is missing; standard error if None.

        Raises:
            InputError: the file cannot be written to.
        """
        self.path = Path(path)
        try:
            _mend_end(self.path)
            self._file: BinaryIO = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held open for the log's life)
        except OSError as error:
            raise explain_write_error(error, self.path) from error
        self._events = None if events is None else _Events(Path(events), notify or _to_stderr)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row.

        Args:
            row: plain values, numpy scalars and arrays, or tensors, in nested mappings and lists.

        Raises:
            InputError: the disk is full or read-only.
            ValueError: `stage`, `kind` or `step` is missing.
            TypeError: a value that JSON cannot express.
        """
        missing = {"stage", "kind", "step"} - row.keys()
        if missing:
            raise ValueError(f"row: expected the keys stage, kind and step, missing {sorted(missing)}")
        plain = to_plain(row)
        append_bytes(self._file, self.path, json_line(plain))
        if self._events is not None:
            self._events.add(plain)

    def truncate_after(self, stage: str, step: int, kind: str | None = None) -> None:
        """Drops the rows of `stage` beyond `step`, of a `kind` from `step` on, so that going on writes them anew.

        Rows of other stages stay. Tensorboard is told to forget the same steps.

        Raises:
            InputError: a line in the middle is not a JSON object, or the file cannot be written.
        """
        rows = self.read()
        ends = {kind: step - 1} if kind is not None else {}
        kept = [row for row in rows if row.get("stage") != stage or row.get("step", 0) <= ends.get(row["kind"], step)]
        data = b"".join(json_line(row) for row in kept)
        if data != self.path.read_bytes():
            self._file.close()
            atomic_write(self.path, data)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (held open for the log's life)
        if self._events is not None:
            self._events.purge(stage, step)

    def read(self) -> list[dict[str, Any]]:
        """All whole rows in order; see `read_rows`."""
        return read_rows(self.path)

    def sync(self) -> None:
        """Flushes to the disk itself; call it before a checkpoint that counts on the rows."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file and tensorboard's; the log cannot be used afterwards."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; a torn last line is left out, a missing file has no rows.

    Raises:
        InputError: a line other than the last is not a JSON object (the message gives its number).
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise InputError(
                f"{path}, line {number}: expected a JSON object, got {line[:40].decode(errors='replace')!r}."
            )
    return rows


def json_line(row: Mapping[str, Any]) -> bytes:
    """One strict JSON object with its line end."""
    return (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n").encode()


def to_plain(value: Any) -> Any:
    """Turns numpy and torch values into Python's own, and numbers that are not finite into None.

    Raises:
        TypeError: a value that JSON cannot express.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    elif isinstance(value, torch.Tensor):
        value = value.detach().cpu().tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    raise TypeError(f"expected a value that JSON can express, got {type(value).__name__}")


def _mend_end(path: Path) -> None:
    """Makes the file end with a whole row: ends a row that lacks only its line end, removes a torn one."""
    data = path.read_bytes() if path.exists() else b""
    if not data or data.endswith(b"\n"):
        return
    start = data.rfind(b"\n") + 1
    with open(path, "r+b") as file:
        if _parse(data[start:]) is None:
            file.truncate(start)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line, or None if it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class _Events:
    """Tensorboard's files, one writer a stage; does nothing where tensorboard is missing."""

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._purge_from: dict[str, int] = {}
        self._writer_class: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            remedy = "pip install 'greedynas_fast[tensorboard]'"
            notify(f"tensorboard is not installed, so events/ stays empty (remedy: {remedy}).")
        else:
            self._writer_class = SummaryWriter

    def add(self, row: Mapping[str, Any]) -> None:
        if self._writer_class is None:
            return
        writer = self._writer(str(row["stage"]))
        for key, value in row.items():
            if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
                writer.add_scalar(f"{row['kind']}/{key}", value, row["step"])

    def purge(self, stage: str, step: int) -> None:
        """Hides the points of `stage` beyond `step`."""
        if stage in self._writers:
            self._writers.pop(stage).close()
        self._purge_from[stage] = step + 1

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            self._writers[stage] = self._writer_class(
                str(self._folder / stage), purge_step=self._purge_from.get(stage), flush_secs=10
            )
        return self._writers[stage]


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)
