"""Checkpoints: exact round trips, damage of every kind, kills at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import CheckpointStore


def state(step: int) -> dict[str, Any]:
    return {"x": torch.full((1000,), float(step)), "step": step, "nested": [{"name": "a", "none": None}, (1.5, True)]}


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "deep" / "train")
    assert store.load_latest() is None
    flat = torch.arange(12, dtype=torch.float32)
    saved = {
        "view": flat[3:7],
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "order": OrderedDict(b=1, a=2),
        3: b"bytes",
        "big": 2**63,
    }
    store.save(7, saved)
    loaded = CheckpointStore(tmp_path / "deep" / "train").load_latest()
    assert loaded is not None
    step, got = loaded
    assert step == 7
    assert got.keys() == saved.keys()
    assert torch.equal(got["view"], flat[3:7])
    assert got["half"].dtype == torch.bfloat16
    assert got["last"].is_contiguous(memory_format=torch.channels_last)
    assert (list(got["order"]), got[3], got["big"]) == (["b", "a"], b"bytes", 2**63)


def test_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (0, 5, 10, 10, 15):
        store.save(step, state(step))
    assert sorted(os.listdir(tmp_path)) == ["step-000000010.pt", "step-000000015.pt"]
    with pytest.raises(ValueError, match="at least 15, got 3"):
        store.save(3, state(3))


def test_file_is_readable_by_torch_alone(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(1, state(1))
    assert torch.load(path, weights_only=True)["step"] == 1


def test_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    a, b = (CheckpointStore(tmp_path / name).save(3, state(3)) for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: flip(data, len(data) // 2),
        lambda data: flip(data, len(data) - 1),
        lambda data: b"\0" * len(data),
        lambda data: data + b"more",
    ],
)
def test_damage_falls_back_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, state(step))
    newest = store.path(2)
    newest.write_bytes(damage(newest.read_bytes()))
    loaded = store.load_latest()
    assert loaded is not None
    assert (loaded[0], loaded[1]["step"]) == (1, 1)
    assert len(store.notices) == 1
    assert "step-000000002.pt is" in store.notices[0]
    assert store.notices[0].endswith("going on from step 1 instead.")
    assert newest.with_name("step-000000002.pt.corrupt").exists()
    assert store.steps() == [1]
    store.save(2, state(2))  # going on writes it anew
    assert store.steps() == [1, 2]


def test_all_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, state(step)).write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"no usable checkpoint in .*step-000000002.*step-000000001.*truncated"):
        store.load_latest()


def test_refuses_what_could_not_be_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\]: expected tensors and plain values, got numpy.float64"):
        store.save(0, {"a": [1, np.float64(2)]})
    with pytest.raises(TypeError, match=r"pathlib"):
        store.save(0, {"a": {"b": tmp_path}})
    assert store.steps() == []


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    # A file with a valid checksum but foreign code inside: weights_only refuses it.
    store = CheckpointStore(tmp_path)
    path = store.save(1, state(1))
    from greedynas_fast.runtime import checkpoints

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    with open(path, "wb") as file:
        checkpoints._write_checked(file, {"a": Evil()})
    with pytest.raises(InputError, match=r"cannot be loaded .*Weights only load failed"):
        store.load_latest()
    assert not (tmp_path / "evil").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_full_disk_loses_nothing(tmp_path: Path, size: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, state(1))
    (tmp_path / f".step-000000002.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match="the disk is full"):
        store.save(2, {"x": torch.zeros(size)})
    assert os.listdir(tmp_path) == ["step-000000001.pt"]
    loaded = store.load_latest()
    assert loaded is not None
    assert loaded[0] == 1


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a folder, found a file"):
        CheckpointStore(tmp_path / "file")


def test_temporary_files_are_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".step-000000002.pt.99.tmp").write_bytes(b"half")
    CheckpointStore(tmp_path)
    assert os.listdir(tmp_path) == []


KILLER = """
import os, signal, sys, time, torch
from greedynas_fast.runtime import CheckpointStore
folder, last = sys.argv[1], -1
for turn in range(20):
    child = os.fork()
    if child == 0:
        store = CheckpointStore(folder)
        loaded = store.load_latest()
        step = loaded[0] + 1 if loaded else 0
        while True:
            store.save(step, {"x": torch.full((30000,), float(step)), "step": step})
            step += 1
    time.sleep(0.005 + 0.0037 * turn)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = CheckpointStore(folder)
    loaded = store.load_latest()
    assert not store.notices, store.notices
    assert len(store.steps()) <= 3, store.steps()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    if loaded:
        step, state = loaded
        assert step >= last and state["step"] == step and bool((state["x"] == step).all())
        last = step
print(last)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
