"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

from greedynas_fast.errors import InputError
from greedynas_fast.runtime.atomic import explain_write_error

_LOOKS = 50
_BETWEEN_LOOKS = 0.02  # seconds


class FolderLock:
    """An exclusive lock on a file, released by the kernel however the process ends.

    Forked children (data loading workers) give up their copy at once, so a child that outlives a killed process does
    not keep the folder locked.
    """

    def __init__(self, path: Path, subject: str) -> None:
        """Takes the lock.

        Args:
            path: the lock file; made if missing, and never removed.
            subject: what is locked, for the message, e.g. `run folder runs/laptop-1`.

        Raises:
            InputError: another process holds it, the folder is read-only, or its file system cannot lock files.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise explain_write_error(error, path) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InputError(f"{subject} is in use by process {holder}.") from None
        except OSError as error:
            os.close(descriptor)
            reason = error.strerror or error
            raise InputError(
                f"{path}: this file system cannot lock files ({reason}); put {subject} elsewhere."
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise explain_write_error(error, path) from error
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    def release(self) -> None:
        """Gives the lock back; harmless if it was given back before."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    """Who says in the file that it holds the lock; one that has just taken it needs a moment to say so."""
    for _ in range(_LOOKS):
        if holder := os.pread(descriptor, 32, 0).decode(errors="replace").strip():
            return holder
        time.sleep(_BETWEEN_LOOKS)
    return "(unknown)"


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_in_child() -> None:
    for lock in list(_HELD):
        with suppress(OSError):
            lock.release()


os.register_at_fork(after_in_child=_close_in_child)
