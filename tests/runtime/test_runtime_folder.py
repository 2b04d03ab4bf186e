"""The run folder: making, opening, numbering, locking, its configuration."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import RunFolder, read_json, write_json
from greedynas_fast.runtime.lock import FolderLock


def test_layout(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    files = [
        run.config,
        run.metrics,
        run.paths,
        run.events,
        run.search,
        run.best,
        run.filter,
        run.retrain_weights,
        run.retrain_config,
        run.result,
        run.report,
        run.checkpoints("train"),
        *run.filter_update(7),
    ]
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "config.yaml",
        "metrics.jsonl",
        "paths.txt",
        "events",
        "search.jsonl",
        "best.json",
        "filter",
        "retrain/model.safetensors",
        "retrain/config.json",
        "result.json",
        "report.html",
        "checkpoints/train",
        "filter/update-007.npz",
        "filter/update-007.json",
    ]


def test_create_and_open(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    with RunFolder.create(path) as run:
        assert not run.has_config
        config = {"seed": 3, "name": "grün", "lr": 0.12, "none": None, "list": [1, 2], "inner": {"b": 1, "a": True}}
        run.write_config(config)
    again = RunFolder.open(path)
    assert again.read_config() == config
    assert list(again.read_config()["inner"]) == ["b", "a"]
    assert RunFolder.create(path).has_config  # an existing run is taken up


def test_create_after_a_kill_before_the_config(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a"):
        pass  # only the lock file is there
    RunFolder.create(tmp_path / "a")


@pytest.mark.parametrize("kind", ["file", "below a file", "other files", "missing", "no config"])
def test_bad_folders(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind in ("file", "below a file"):
        path.write_text("x")
        path = path if kind == "file" else path / "b"
        with pytest.raises(InputError, match="expected a folder, found a file"):
            RunFolder.create(path)
    elif kind == "other files":
        path.mkdir()
        (path / "thesis.tex").write_text("x")
        with pytest.raises(InputError, match=r"found other files"):
            RunFolder.create(path)
    elif kind == "missing":
        with pytest.raises(InputError, match="no such folder"):
            RunFolder.open(path)
    else:
        path.mkdir()
        with pytest.raises(InputError, match=r"no config\.yaml"):
            RunFolder.open(path)


def test_next_free(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    assert RunFolder.next_free(parent, "laptop").name == "laptop-1"
    (parent / "laptop-9").mkdir()
    (parent / "laptop-x").mkdir()
    (parent / "other-50").mkdir()
    assert RunFolder.next_free(parent, "laptop").name == "laptop-10"
    assert (parent / "laptop-10").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="found a file"):
        RunFolder.next_free(tmp_path / "file", "a")


@pytest.mark.parametrize(("number", "words"), [(errno.EROFS, "read-only"), (errno.EACCES, "permission denied")])
def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    # Simulated: root may write anywhere.
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(InputError, match=words):
            RunFolder.create(tmp_path / "a")
    run = RunFolder.create(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(InputError, match=words), run:
            pass


@pytest.mark.parametrize(
    ("text", "words"), [("a: [1", "not valid YAML"), ("- 1\n", "expected a mapping"), ("", "expected a mapping")]
)
def test_bad_config(tmp_path: Path, text: str, words: str) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        run.read_config()
    run.config.write_text(text)
    with pytest.raises(InputError, match=words):
        run.read_config()
    run.config.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        run.read_config()


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    write_json(path, {"accuracy": np.float64(0.5), "loss": float("nan"), "names": ("a", "b"), "m": np.arange(2)})
    assert read_json(path) == {"accuracy": 0.5, "loss": None, "names": ["a", "b"], "m": [0, 1]}
    for text, words in [("{", "not valid JSON"), ("[1]", "expected a JSON object")]:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_json(path)


def test_lock_in_one_process(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a") as run:
        run.write_config({"a": 1})
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), RunFolder.open(tmp_path / "a"):
            pass
        assert RunFolder.open(tmp_path / "a").read_config() == {"a": 1}  # reading needs no lock
    with RunFolder.open(tmp_path / "a"):
        pass


def test_lock_just_taken(tmp_path: Path) -> None:
    """Its holder has not yet written who it is, and does so a moment later, or never."""
    path = tmp_path / "lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Timer(0.1, lambda: path.write_text("123\n"))
        writer.start()
        with pytest.raises(InputError, match=r"the folder is in use by process 123\."):
            FolderLock(path, "the folder")
        writer.join()
        path.write_text("")
        with pytest.raises(InputError, match=r"the folder is in use by process \(unknown\)\."):
            FolderLock(path, "the folder")


HOLDER = """
import os, sys, time
from greedynas_fast.runtime import RunFolder
with RunFolder.create(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_lock_of_a_killed_process_with_a_living_child(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with (
            pytest.raises(InputError, match=rf"run folder .*a is in use by process {holder.pid}\."),
            RunFolder.create(tmp_path / "a"),
        ):
            pass
        (tmp_path / "a" / ".best.json.1.tmp").write_text("half")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # still there, and yet:
        with RunFolder.create(tmp_path / "a"):
            assert not (tmp_path / "a" / ".best.json.1.tmp").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_file_system_that_cannot_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.create(tmp_path / "a") as run:
        run.write_config({"seed": 1})

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(InputError, match=r"\.lock: this file system cannot lock files \(No locks available\); put run"),
        RunFolder.open(tmp_path / "a"),
    ):
        pass
