"""A run folder that is damaged, in use, full or read-only: said in one sentence, nothing lost, and gone on from."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import yaml
from stages_runs import RUN, STEPS, differences, failure, files, newest, outcome, succeed

from greedynas_fast.cli import main
from greedynas_fast.runtime import CheckpointStore
from greedynas_fast.runtime import atomic as atomic_module
from greedynas_fast.runtime import checkpoints as checkpoint_module

Capture = pytest.CaptureFixture[str]
# Every 4 of 24 steps and at the updates (6, 12, 18, 24), and once more at the end.
TRAIN_CHECKPOINTS = 9


@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_a_checkpoint_of_another_space(copy: Path, capsys: Capture, stage: str) -> None:
    state = newest(copy, stage)
    step = state["step"]
    CheckpointStore(copy / "checkpoints" / stage).save(step, {**state, "space": "0" * 64})
    before = files(copy)
    message = failure(capsys, "run", "--run", copy)
    assert f"{stage}/step-{step:09d}.pt is of another search space than this run's (tiny)" in message
    assert files(copy) == before


@pytest.mark.parametrize(
    ("damage", "word"),
    [(lambda data: data[:-100], "truncated"), (lambda data: b"", "truncated"), (lambda data: flip(data), "corrupt")],
    ids=["cut", "empty", "flipped"],
)
@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_the_newest_checkpoint_is_damaged(
    copy: Path, finished: Path, capsys: Capture, damage: Callable[[bytes], bytes], word: str, stage: str
) -> None:
    file = sorted((copy / "checkpoints" / stage).iterdir())[-1]
    file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    assert main(["run", "--run", str(copy), "--json"]) == 0
    said = capsys.readouterr().err
    assert f"checkpoint {file} is" in said
    assert word in said
    assert "going on from step " in said
    damaged = file.with_name(file.name + ".corrupt")
    assert damaged.is_file()
    assert differences(outcome(copy), outcome(finished)) == []


def flip(data: bytes) -> bytes:
    """One bit in the middle turned over."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("stage", ["train", "retrain"])
def test_all_checkpoints_are_damaged(copy: Path, capsys: Capture, stage: str) -> None:
    for file in (copy / "checkpoints" / stage).iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    before = files(copy)
    message = failure(capsys, "run", "--run", copy)
    assert f"no usable checkpoint in run/checkpoints/{stage}" in message
    assert files(copy) == before


def test_a_run_in_use(copy: Path, capsys: Capture) -> None:
    holder = (
        "import fcntl, os, sys\n"
        "file = os.open('run/.lock', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "os.ftruncate(file, 0); os.pwrite(file, f'{os.getpid()}\\n'.encode(), 0)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    before = files(copy)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        for words in (["run", "--run", "run"], ["search", "run"], ["retrain", "run"], ["evaluate", "run"]):
            assert failure(capsys, *words) == f"run folder run is in use by process {process.pid}."
        assert files(copy) == before
        process.kill()
        process.wait()
        # The kernel has released the lock.
        succeed(capsys, "evaluate", copy)


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EROFS, "the file system is read-only"), (errno.EACCES, "permission denied")]
)
def test_a_read_only_folder(
    copy: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    original = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and Path(path).absolute().is_relative_to(copy.absolute()):
            raise OSError(number, os.strerror(number), str(path))
        return original(path, flags, *args, **kwargs)

    before = files(copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for command in ("search", "retrain", "evaluate", "export"):
            assert message in failure(capsys, command, copy)
    assert files(copy) == before


def test_a_folder_that_becomes_read_only(
    trained: Path, config: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is taken, the first file cannot be written."""

    def refuse(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    before = files(trained)
    with monkeypatch.context() as patch:
        patch.setattr(atomic_module, "open", refuse, raising=False)
        message = failure(capsys, "search", trained, "--search.evaluations", "6")
    assert "read-only" in message
    assert files(trained) == before


@pytest.mark.parametrize("write", [0, 4, 8, 11])
def test_a_full_disk(
    config: Path, here: Path, finished: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    """The disk is full in the middle of one checkpoint of training or of retraining."""
    writes = 0
    original = checkpoint_module._write_checked

    def full(file: BinaryIO, state: dict[str, Any]) -> None:
        nonlocal writes
        writes += 1
        if writes == write + 1:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_write_checked", full)
        message = failure(capsys, "run", "--run", RUN, "--config", config)
    assert message.startswith("cannot write run/checkpoints/")
    assert "the disk is full" in message
    assert "Nothing saved before is lost; make room and run the same command again." in message
    assert not list(RUN.rglob("*.tmp"))
    stage = message.split("/")[2]
    whole = CheckpointStore(RUN / "checkpoints" / stage)
    assert len(whole.steps()) == min(2, write if stage == "train" else write - TRAIN_CHECKPOINTS)
    succeed(capsys, "run", "--run", RUN, "--config", config)
    assert differences(outcome(RUN), outcome(finished)) == []


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "train: [\n"), ("space.json", "{"), ("search.jsonl", "{}\nxx\n{}\n")]
)
def test_a_damaged_file_is_named(copy: Path, capsys: Capture, name: str, text: str) -> None:
    (copy / name).write_text(text)
    before = files(copy)
    assert name in failure(capsys, "search", copy)
    assert files(copy) == before


def test_a_search_that_is_not_of_this_run(copy: Path, capsys: Capture) -> None:
    lines = (copy / "search.jsonl").read_text().splitlines(keepends=True)
    (copy / "search.jsonl").write_text("".join(lines[::-1]))
    before = files(copy)
    assert "are not of this search" in failure(capsys, "search", copy)
    assert files(copy) == before


def test_retraining_of_another_path(copy: Path, capsys: Capture) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["retrain"]["path"] = "000"
    (copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    message = failure(capsys, "retrain", copy)
    assert "holds the retraining of path" in message
    assert "not of 000" in message


def test_a_path_log_that_was_cut(copy: Path, capsys: Capture) -> None:
    """The checkpoint counts on lines that are gone."""
    (copy / "checkpoints" / "train" / f"step-{STEPS:09d}.pt").unlink()
    (copy / "paths.txt").write_text("000\n")
    assert "paths.txt: expected at least 20 lines" in failure(capsys, "train", "--run", copy)
