"""Checkpoints of one stage: written atomically, beside the training if wished, checked on loading, a few kept."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import struct
import threading
import weakref
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, cast

import torch

from greedynas_fast.errors import InputError
from greedynas_fast.runtime.atomic import atomic_write, explain_write_error, remove_leftovers
from greedynas_fast.runtime.snapshot import Snapshots

_NAME = re.compile(r"step-(\d{9,})\.pt")
# The footer behind torch's own bytes: magic, their number, their sha256.
_MAGIC = b"GNFCKPT1"
_FOOTER = struct.Struct("<8sQ32s")
_PLAIN_TYPES = (int, float, bool, str, bytes, type(None), torch.Size, torch.dtype, torch.device)


class CheckpointStore:
    """The checkpoints `step-%09d.pt` of one folder.

    A file holds what `torch.save` wrote and a footer with its sha256, so that a truncated or corrupt file is noticed
    and the one before is used instead.

    `save` returns when the file is on the disk. `save_soon` returns when the state is copied in memory; one thread
    writes the copy, and the process does not end before it has. As a context manager the store waits for it at exit.

    Attributes:
        folder: where the files lie; made if missing.
        notices: one sentence for each file that had to be passed over, to show to the user.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        """Opens the store and removes temporary files that a killed process left.

        Args:
            folder: made if missing. The caller must own it (see `RunFolder`).
            keep: how many of the newest checkpoints to keep, at least 1.

        Raises:
            InputError: the folder cannot be made.
        """
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self.folder = Path(folder)
        self.notices: list[str] = []
        self._keep = keep
        self._snapshots = Snapshots()
        self._writing: threading.Thread | None = None
        self._failure: Exception | None = None
        _STORES.add(self)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InputError(f"checkpoint folder {self.folder}: expected a folder, found a file.") from error
        except OSError as error:
            raise explain_write_error(error, self.folder) from error
        remove_leftovers(self.folder)

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, ascending; says nothing about whether they are whole.

        What `save_soon` is writing is waited for.
        """
        self._wait()
        return self._found()

    def path(self, step: int) -> Path:
        """The file of a step, whether it exists or not."""
        return self.folder / f"step-{step:09d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes the checkpoint of `step`, then removes all but the newest `keep`.

        Args:
            step: at least 0, and not below the newest step in the store.
            state: nested dicts, lists and tuples of tensors and plain values; anything else could not be loaded with
                `weights_only=True`.

        Returns:
            The path of the file.

        Raises:
            InputError: the disk is full or read-only, now or for the last `save_soon`; earlier checkpoints stay as
                they are.
            TypeError: `state` holds a value of another type (the message says where).
        """
        self._check(step, state)
        self._write(step, state)
        return self.path(step)

    def save_soon(self, step: int, state: dict[str, Any]) -> None:
        """Copies the state, and has the copy written as by `save` while the caller goes on.

        A copy that is still being written is waited for first. What the checkpoint counts on must be on the disk
        before the call.

        Args:
            step: as for `save`.
            state: as for `save`; may change after the call.

        Raises:
            InputError: the checkpoint before this one could not be written; this one is not.
            TypeError: as for `save`.
        """
        self._check(step, state)
        snapshot = self._snapshots.take(state)
        # Not a daemon: Python waits for such a thread before it ends, however it ends.
        self._writing = threading.Thread(target=self._write_noting, args=(step, snapshot), name="checkpoint")
        self._writing.start()

    def flush(self) -> None:
        """Waits until what `save_soon` copied is on the disk.

        Raises:
            InputError: it could not be written. The next call raises nothing.
        """
        self._wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None:
            self.flush()
        else:
            self._wait()  # what ends the context matters more than a checkpoint that failed

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state) with tensors on the CPU, or None if there is none at all.

        A damaged file is renamed to `*.corrupt`, `notices` gets a sentence about it, and the one before is tried.

        Raises:
            InputError: there are checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        damaged: list[str] = []
        for step in reversed(steps):
            path = self.path(step)
            try:
                state = _read_checked(path)
            except _DamagedError as error:
                damaged.append(f"checkpoint {path} {error}")
                continue
            for sentence in damaged:
                self.notices.append(f"{sentence}; going on from step {step} instead.")
            self._set_aside([later for later in steps if later > step])
            return step, state
        if damaged:
            raise InputError(f"no usable checkpoint in {self.folder}: " + "; ".join(damaged) + ".")
        return None

    def _check(self, step: int, state: dict[str, Any]) -> None:
        self.flush()
        existing = self._found()
        if step < 0 or (existing and step < existing[-1]):
            raise ValueError(f"step: expected at least {existing[-1] if existing else 0}, got {step}")
        _check_plain(state, "state")

    def _write(self, step: int, state: dict[str, Any]) -> None:
        atomic_write(self.path(step), lambda file: _write_checked(file, state))
        for old in self._found()[: -self._keep]:
            with suppress(OSError):
                self.path(old).unlink()

    def _write_noting(self, step: int, state: dict[str, Any]) -> None:
        """`_write` in the thread, whose exceptions nobody would see."""
        try:
            self._write(step, state)
        except Exception as error:
            self._failure = error

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _found(self) -> list[int]:
        found = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            path = self.path(step)
            with suppress(OSError):
                path.rename(path.with_name(path.name + ".corrupt"))


_STORES: weakref.WeakSet[CheckpointStore] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child (a data loading worker) has no writing thread; the parent's goes on there."""
    for store in list(_STORES):
        store._writing = store._failure = None


os.register_at_fork(after_in_child=_forget_in_child)


class _DamagedError(Exception):
    """A checkpoint file that is not whole; the message continues 'checkpoint X ...'."""


class _HashingWriter:
    """Hands bytes on to a file and hashes them; keeps the first OSError instead of raising it.

    Why: an exception inside torch's zip writer comes out as another one, or ends the process in its destructor.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        self.sha256.update(data)
        self.num_bytes += size
        return size

    def flush(self) -> None:
        """Does nothing: the caller flushes the file once at the end."""


def _write_checked(file: BinaryIO, state: dict[str, Any]) -> None:
    writer = _HashingWriter(file)
    torch.save(state, cast("IO[bytes]", writer))
    if writer.error is not None:
        raise writer.error
    file.write(_FOOTER.pack(_MAGIC, writer.num_bytes, writer.sha256.digest()))


def _read_checked(path: Path) -> dict[str, Any]:
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise _DamagedError(f"cannot be read ({error.strerror})") from error
    if len(data) < _FOOTER.size:
        raise _DamagedError(f"is truncated ({len(data)} bytes)")
    magic, num_bytes, digest = _FOOTER.unpack(data[-_FOOTER.size :])
    body = data[: -_FOOTER.size]
    if magic != _MAGIC or num_bytes != len(body):
        raise _DamagedError(f"is truncated or was not written by this program ({len(data)} bytes)")
    if hashlib.sha256(body).digest() != digest:
        raise _DamagedError("is corrupt (its checksum does not match)")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0].rstrip(". ")
        raise _DamagedError(f"cannot be loaded by this version of torch ({reason})") from error
    if not isinstance(state, dict):
        raise _DamagedError("does not hold a dictionary")
    return state


def _check_plain(value: object, where: str) -> None:
    """Refuses what `weights_only=True` would refuse on loading: subclasses such as numpy scalars included."""
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN_TYPES:
        return
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    else:
        name = f"{type(value).__module__}.{type(value).__name__}"
        raise TypeError(f"{where}: expected tensors and plain values, got {name}")
