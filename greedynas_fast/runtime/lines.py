"""Append-only files of short lines that can be cut back to an exact length, e.g. `paths.txt`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from greedynas_fast.errors import InputError
from greedynas_fast.runtime.atomic import explain_write_error


class LineLog:
    """One line a record, whole lines only: a last line without a line end (torn by a kill) is dropped at opening.

    To go on exactly: put `len(log)` into the checkpoint, and call `truncate_to` with it after loading.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens `path` for appending; the file is made if missing, its folder must exist.

        Raises:
            InputError: the file cannot be written to.
        """
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (held open for the log's life)
        except OSError as error:
            raise explain_write_error(error, self.path) from error
        self._count, whole, size = _count_lines(self._file)
        if whole < size:
            self._file.truncate(whole)

    def __len__(self) -> int:
        """The number of lines."""
        return self._count

    def append(self, lines: Iterable[str]) -> None:
        """Adds lines in one write; on a failure none of them stays.

        Raises:
            InputError: the disk is full or read-only.
            ValueError: a line holds a line end.
        """
        items = list(lines)
        for line in items:
            if "\n" in line or "\r" in line:
                raise ValueError(f"line: expected no line end, got {line!r}")
        data = "".join(f"{line}\n" for line in items).encode()
        append_bytes(self._file, self.path, data)
        self._count += len(items)

    def truncate_to(self, count: int) -> None:
        """Keeps the first `count` lines.

        Raises:
            InputError: there are fewer lines.
        """
        if count > self._count:
            raise InputError(
                f"{self.path}: expected at least {count} lines to go on from the checkpoint, found {self._count}."
            )
        with open(self.path, "rb") as file:
            offset = sum(len(file.readline()) for _ in range(count))
        self._file.truncate(offset)
        self._count = count

    def read(self) -> list[str]:
        """All lines, without line ends."""
        return self.path.read_bytes().decode().splitlines()

    def sync(self) -> None:
        """Flushes to the disk itself; call it before a checkpoint that counts on the lines."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; the log cannot be used afterwards."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def append_bytes(file: BinaryIO, path: Path, data: bytes) -> None:
    """Appends `data` to an unbuffered file as a whole or not at all.

    Raises:
        InputError: the disk is full or read-only.
    """
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        with suppress(OSError):
            file.truncate(os.fstat(file.fileno()).st_size - (len(data) - len(rest)))
        raise explain_write_error(error, path, num_bytes=len(data)) from error


def _count_lines(file: BinaryIO) -> tuple[int, int, int]:
    """The number of whole lines, the bytes they take, and the bytes of the file."""
    file.seek(0)
    count, whole, offset = 0, 0, 0
    while block := file.read(1 << 20):
        count += block.count(b"\n")
        if (last := block.rfind(b"\n")) >= 0:
            whole = offset + last + 1
        offset += len(block)
    return count, whole, offset
