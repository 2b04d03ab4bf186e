"""A Chrome trace of some steps, and nothing where none is wanted."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import profile, profiled


def loop(path: Path, steps: int, count: int) -> tuple[list[str], list[bool]]:
    """What was said, and whether the trace was there after each of `count` steps of one matrix product each."""
    said: list[str] = []
    there = []
    x = torch.ones(8, 8)
    with profiled(path, steps, said.append) as step:
        for _ in range(count):
            torch.mm(x, x)
            step()
            there.append(path.exists())
    return said, there


def products(path: Path) -> int:
    """Matrix products in a trace."""
    trace: dict[str, Any] = json.loads(path.read_text())
    return sum(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def test_trace(tmp_path: Path) -> None:
    path = tmp_path / "profile" / "train.json"
    said, there = loop(path, 2, 7)
    assert there == [False] * 4 + [True] * 3
    assert products(path) == 2
    assert said == [f"profile of 2 steps: {path} (open it in ui.perfetto.dev or chrome://tracing)"]
    assert os.listdir(path.parent) == ["train.json"]


def test_a_loop_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "profile" / "train.json"
    said, _ = loop(path, 5, 5)
    assert products(path) == 2
    assert said[0].startswith("profile of 2 steps: ")
    path.unlink()
    said, _ = loop(path, 5, 3)
    assert said == ["profile: no trace, for only 3 steps were done, 3 of them to warm up"]
    assert not path.exists()


def test_off_starts_no_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.profiler, "profile")
    assert loop(tmp_path / "profile" / "train.json", 0, 5) == ([], [False] * 5)
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(profile.os, "replace", full)
    with pytest.raises(InputError, match=r"cannot write .*train\.json: the disk is full"):
        loop(tmp_path / "profile" / "train.json", 1, 6)
    assert os.listdir(tmp_path / "profile") == []
