"""Writing files so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from greedynas_fast.errors import InputError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_TEMP_SUFFIX = ".tmp"


def atomic_write(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Replaces `path` by `content` in one step that survives a kill or a power cut at any moment.

    The content goes to a hidden temporary file in the same folder, is flushed to the disk, and is then renamed over
    `path`; the folder entry is flushed last. Whatever goes wrong before the rename, `path` keeps its old content.

    Args:
        path: the file to write; its folder must exist.
        content: the bytes, or a function that writes them to the open binary file it is handed.

    Raises:
        InputError: the disk is full, or the folder cannot be written to. The temporary file is removed first.
    """
    target = Path(path)
    temp = target.with_name(f".{target.name}.{os.getpid()}{_TEMP_SUFFIX}")
    written = 0
    try:
        with open(temp, "wb") as file:
            try:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            finally:
                with suppress(OSError, ValueError):
                    written = os.fstat(file.fileno()).st_size
        os.replace(temp, target)
        _sync_folder(target.parent)
    except OSError as error:
        _remove(temp)
        wanted = None if callable(content) else len(content)
        raise explain_write_error(error, target, num_bytes=wanted or written) from error
    except BaseException:
        _remove(temp)
        raise


def explain_write_error(error: OSError, path: Path, num_bytes: int | None = None) -> Exception:
    """The exception to raise for a failed write: a plain `InputError` where the user can act, else `error` itself.

    Args:
        error: what the system said.
        path: the file that was being written.
        num_bytes: how much was being written, if known.
    """
    if error.errno in _FULL:
        size = f" of {format_bytes(num_bytes)}" if num_bytes else ""
        return InputError(
            f"cannot write {path}{size}: the disk is full ({_free(path.parent)} free). Nothing saved before is lost; "
            "make room and run the same command again."
        )
    if error.errno == errno.EROFS:
        return InputError(f"cannot write {path}: the file system is read-only.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return InputError(f"cannot write {path}: permission denied (the file or its folder is read-only for you).")
    return error


def format_bytes(num_bytes: int) -> str:
    """A size in plain words, e.g. `3.4 MB` (decimal units)."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed `atomic_write` left in `folder`; call it only while owning the folder."""
    for temp in folder.glob(f".*{_TEMP_SUFFIX}"):
        _remove(temp)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _free(folder: Path) -> str:
    try:
        return format_bytes(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown amount"


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable; some file systems refuse to sync a folder, and then there is nothing to do."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
