"""Checkpoints that are written while the caller goes on: the state of the call, one at a time, nothing lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import CheckpointStore, checkpoints
from greedynas_fast.runtime.snapshot import Snapshots


class Gate:
    """Holds the writing of checkpoints up, and counts how many are written at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.writing = self.most = 0
        self.fail_at: set[int] = set()
        self.calls = 0
        original = checkpoints._write_checked

        def gated(file: BinaryIO, state: dict[str, Any]) -> None:
            self.calls += 1
            self.writing += 1
            self.most = max(self.most, self.writing)
            self.entered.set()
            assert self.open.wait(30)
            self.writing -= 1
            if self.calls in self.fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(file, state)

        monkeypatch.setattr(checkpoints, "_write_checked", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


def test_the_state_of_the_call_is_written(tmp_path: Path, gate: Gate) -> None:
    store = CheckpointStore(tmp_path)
    state: dict[str, Any] = {"x": torch.zeros(1000), "list": [1], "nested": {"step": 1}}
    store.save_soon(1, state)
    assert gate.entered.wait(30)
    state["x"].fill_(7)
    state["list"].append(2)
    state["nested"]["step"] = 2
    assert os.listdir(tmp_path) == [f".step-000000001.pt.{os.getpid()}.tmp"]
    gate.open.set()
    store.flush()
    loaded = store.load_latest()
    assert loaded is not None
    assert torch.equal(loaded[1].pop("x"), torch.zeros(1000))
    assert loaded == (1, {"list": [1], "nested": {"step": 1}})


def test_the_file_is_the_one_that_save_writes(tmp_path: Path) -> None:
    bank = torch.randn(1000)
    state = {
        "views": OrderedDict(a=bank[10:20], b=bank[500:].view(20, 25).t()),
        "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "half": torch.rand(7, dtype=torch.bfloat16),
        "numpy": torch.from_numpy(bank.numpy()[:3]),
        "empty": (torch.empty(0), torch.empty((0, 3), dtype=torch.uint8)),
        "scalar": torch.tensor(3),
    }
    soon, now = CheckpointStore(tmp_path / "soon"), CheckpointStore(tmp_path / "now")
    for step in (1, 2):  # the second time into the same memory
        bank += 1
        soon.save_soon(step, state)
        now.save(step, state)
    assert soon.steps() == now.steps() == [1, 2]
    for step in (1, 2):
        a, b = (torch.load(store.path(step), weights_only=True) for store in (soon, now))
        for name in ("channels_last", "half", "numpy", "scalar"):
            assert torch.equal(a[name], b[name])
            assert a[name].stride() == b[name].stride()
        assert all(torch.equal(a["views"][key], b["views"][key]) for key in "ab")
        assert a["views"]["a"].untyped_storage().data_ptr() == a["views"]["b"].untyped_storage().data_ptr()
        assert [x.shape for x in a["empty"]] == [x.shape for x in b["empty"]]


def test_snapshots_keep_their_memory_while_sizes_stay() -> None:
    snapshots = Snapshots()
    state: dict[str, Any] = {"x": torch.ones(100), "y": [torch.ones(50)]}
    first = snapshots.take(state)
    places = first["x"].data_ptr(), first["y"][0].data_ptr()
    state["x"].zero_()
    second = snapshots.take(state)
    assert (second["x"].data_ptr(), second["y"][0].data_ptr()) == places
    assert second["x"].sum() == 0
    assert second["y"][0].sum() == 50
    other = snapshots.take({"x": torch.ones(99), "y": [torch.ones(50)]})
    assert other["x"].shape == (99,)
    assert other["y"][0].data_ptr() == places[1]


def test_one_at_a_time_in_order(tmp_path: Path, gate: Gate) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save_soon(1, {"step": 1})
    assert gate.entered.wait(30)
    threading.Timer(0.05, gate.open.set).start()
    for step in (2, 3, 4):
        store.save_soon(step, {"step": step})  # the first of these waits for the timer
    store.save(5, {"step": 5})
    assert (gate.most, gate.calls) == (1, 5)
    assert sorted(os.listdir(tmp_path)) == ["step-000000004.pt", "step-000000005.pt"]
    with pytest.raises(ValueError, match="at least 5, got 4"):
        store.save_soon(4, {"step": 4})


@pytest.mark.parametrize("call", ["save_soon", "save", "flush", "exit"])
def test_a_full_disk_is_told_at_the_next_call(tmp_path: Path, gate: Gate, call: str) -> None:
    gate.open.set()
    gate.fail_at = {2}
    store = CheckpointStore(tmp_path)
    store.save_soon(1, {"step": 1})
    store.save_soon(2, {"step": 2})
    calls: dict[str, Callable[[], object]] = {
        "save_soon": lambda: store.save_soon(3, {"step": 3}),
        "save": lambda: store.save(3, {"step": 3}),
        "flush": store.flush,
        "exit": lambda: store.__exit__(None, None, None),
    }
    with pytest.raises(InputError, match=r"step-000000002.pt.*the disk is full.*Nothing saved before is lost"):
        calls[call]()
    assert os.listdir(tmp_path) == ["step-000000001.pt"]
    store.flush()  # told once
    store.save_soon(3, {"step": 3})
    assert store.steps() == [1, 3]


def test_what_ends_the_context_matters_more(tmp_path: Path, gate: Gate) -> None:
    gate.open.set()
    gate.fail_at = {1}
    store = CheckpointStore(tmp_path)

    def work() -> None:
        with store:
            store.save_soon(1, {"step": 1})
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        work()
    assert os.listdir(tmp_path) == []


def test_refuses_at_once_what_could_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]: expected tensors and plain values"):
        CheckpointStore(tmp_path).save_soon(1, {"a": tmp_path})


ENDING = """
import sys, time, torch
from greedynas_fast.runtime import CheckpointStore, checkpoints
original = checkpoints._write_checked
def slow(file, state):
    time.sleep(0.3)
    original(file, state)
checkpoints._write_checked = slow
CheckpointStore(sys.argv[1]).save_soon(1, {"x": torch.ones(100_000)})
raise KeyboardInterrupt
"""


def test_the_end_of_the_process_loses_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-P", "-c", ENDING, str(tmp_path)]
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode != 0
    loaded = CheckpointStore(tmp_path).load_latest()
    assert loaded is not None
    assert loaded[1]["x"].sum() == 100_000


FORKING = """
import os, sys, threading, torch
from greedynas_fast.runtime import CheckpointStore, checkpoints
original, entered, go_on = checkpoints._write_checked, threading.Event(), threading.Event()
def gated(file, state):
    original(file, state)  # at the fork its last bytes are still in Python's buffer
    entered.set()
    go_on.wait()
checkpoints._write_checked = gated
store = CheckpointStore(sys.argv[1])
store.save_soon(1, {"x": torch.ones(1000)})
entered.wait()
child = os.fork()
if child == 0:
    store.flush()
    own = CheckpointStore(sys.argv[2])
    checkpoints._write_checked = original
    own.save_soon(2, {"x": torch.ones(10)})
    own.flush()
    sys.exit(0)  # with all of Python's clearing up
assert os.waitpid(child, 0)[1] == 0
go_on.set()
store.flush()
"""


def test_a_forked_child_neither_waits_nor_writes(tmp_path: Path) -> None:
    """A data loading worker that begins while a checkpoint is being written."""
    words = [sys.executable, "-P", "-W", "ignore", "-c", FORKING, str(tmp_path / "parent"), str(tmp_path / "child")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "parent") == ["step-000000001.pt"]
    for name, step in (("parent", 1), ("child", 2)):
        loaded = CheckpointStore(tmp_path / name).load_latest()
        assert loaded is not None
        assert loaded[0] == step
