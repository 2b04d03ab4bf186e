"""The folder of one run: which file lies where, who may write, and its configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from greedynas_fast.errors import InputError
from greedynas_fast.runtime.atomic import atomic_write, explain_write_error, remove_leftovers
from greedynas_fast.runtime.lock import FolderLock
from greedynas_fast.runtime.metrics import to_plain

_LOCK_NAME = ".lock"


class RunFolder:
    """A run folder. Use it as a context manager to own it; reading needs no lock.

    Example:
        with RunFolder.create(RunFolder.next_free("runs", "laptop")) as run:
            run.write_config({"preset": "laptop"})

    Attributes:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Names a folder without touching it; see `create` and `open`."""
        self.path = Path(path)
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Makes the folder, or takes an existing one that is empty or already a run folder.

        Raises:
            InputError: the path is a file, holds something else than a run, or cannot be made.
        """
        run = cls(path)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            entries = {entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")}
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"run folder {run.path}: expected a folder, found a file.") from error
        except OSError as error:
            raise explain_write_error(error, run.path) from error
        if entries and not run.has_config:
            raise InputError(
                f"run folder {run.path}: expected an empty folder or one with a config.yaml, found other files in it."
            )
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Takes an existing run folder.

        Raises:
            InputError: there is no such folder, or it has no config.yaml.
        """
        run = cls(path)
        if not os.path.isdir(run.path):
            raise InputError(f"run folder {run.path}: no such folder.")
        if not run.has_config:
            raise InputError(f"run folder {run.path}: expected a run folder, but it has no config.yaml.")
        return run

    @staticmethod
    def next_free(parent: str | Path, prefix: str) -> Path:
        """Makes and returns `parent/prefix-N`, N one above the highest number there is, from 1.

        Raises:
            InputError: the folder cannot be made.
        """
        parent = Path(parent)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                number = _highest_number(parent, prefix) + 1
                path = parent / f"{prefix}-{number}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue  # another process was faster: look again
                return path
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"folder of runs {parent}: expected a folder, found a file.") from error
        except OSError as error:
            raise explain_write_error(error, parent) from error

    @classmethod
    def newest(cls, parent: str | Path, prefix: str) -> Self | None:
        """The folder `parent/prefix-N` with the highest number, or None if there is none."""
        parent = Path(parent)
        number = _highest_number(parent, prefix) if parent.is_dir() else 0
        return cls(parent / f"{prefix}-{number}") if number else None

    def __enter__(self) -> Self:
        """Takes the exclusive lock and removes temporary files of a killed process.

        Raises:
            InputError: another process holds the folder, or it is read-only.
        """
        self._lock = FolderLock(self.path / _LOCK_NAME, f"run folder {self.path}")
        for folder in (self.path, self.filter, self.retrain):
            if folder.is_dir():
                remove_leftovers(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def has_config(self) -> bool:
        """Whether config.yaml is there."""
        return os.path.isfile(self.config)  # False where Path.is_file would raise: in a folder closed to us

    @property
    def config(self) -> Path:
        """`config.yaml`, the resolved configuration."""
        return self.path / "config.yaml"

    @property
    def space(self) -> Path:
        """`space.json`, the resolved search space."""
        return self.path / "space.json"

    @property
    def metrics(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def held_out(self) -> Path:
        """`held_out.txt`, the training images that are not trained on, one a line."""
        return self.path / "held_out.txt"

    @property
    def paths(self) -> Path:
        """`paths.txt`, the path of each training step, or the paths of its group."""
        return self.path / "paths.txt"

    @property
    def events(self) -> Path:
        """`events/`, tensorboard's files."""
        return self.path / "events"

    @property
    def search(self) -> Path:
        """`search.jsonl`, every candidate the search evaluated."""
        return self.path / "search.jsonl"

    @property
    def best(self) -> Path:
        """`best.json`, what the search found."""
        return self.path / "best.json"

    @property
    def filter(self) -> Path:
        """`filter/`, one pair of files an update."""
        return self.path / "filter"

    @property
    def retrain(self) -> Path:
        """`retrain/`, the retrained network."""
        return self.path / "retrain"

    @property
    def retrain_weights(self) -> Path:
        """`retrain/model.safetensors`."""
        return self.retrain / "model.safetensors"

    @property
    def retrain_config(self) -> Path:
        """`retrain/config.json`."""
        return self.retrain / "config.json"

    @property
    def result(self) -> Path:
        """`result.json`, the final figures."""
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        """`report.html`."""
        return self.path / "report.html"

    def profile(self, stage: str) -> Path:
        """`profile/<stage>.json`, a Chrome trace of some steps."""
        return self.path / "profile" / f"{stage}.json"

    def checkpoints(self, stage: str) -> Path:
        """`checkpoints/<stage>/`."""
        return self.path / "checkpoints" / stage

    def filter_update(self, number: int) -> tuple[Path, Path]:
        """`filter/update-%03d.npz` and `.json` of one update."""
        stem = self.filter / f"update-{number:03d}"
        return stem.with_suffix(".npz"), stem.with_suffix(".json")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml atomically, keys in the order given.

        Raises:
            InputError: the disk is full or read-only.
        """
        import yaml

        text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        atomic_write(self.config, text.encode())

    def read_config(self) -> dict[str, Any]:
        """Reads config.yaml.

        Raises:
            InputError: the file is missing, not YAML, or not a mapping.
        """
        import yaml

        try:
            config = yaml.safe_load(_read_text(self.config))
        except yaml.YAMLError as error:
            raise InputError(f"{self.config}: not valid YAML ({' '.join(str(error).split())}).") from error
        if not isinstance(config, dict):
            raise InputError(f"{self.config}: expected a mapping of settings, got {type(config).__name__}.")
        return config


def _highest_number(parent: Path, prefix: str) -> int:
    """The highest N of the entries `prefix-N`, 0 if there is none."""
    pattern = re.compile(re.escape(prefix) + r"-(\d+)")
    matches = (pattern.fullmatch(entry.name) for entry in parent.iterdir())
    return max((int(match.group(1)) for match in matches if match), default=0)


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes one strict JSON object atomically, indented; numbers that are not finite become null.

    Raises:
        InputError: the disk is full or read-only.
    """
    text = json.dumps(to_plain(value), allow_nan=False, ensure_ascii=False, indent=2)
    atomic_write(path, (text + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        InputError: the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(_read_text(Path(path)))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
