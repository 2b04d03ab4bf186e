"""Logs that grow by lines and are cut back to a checkpoint."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from greedynas_fast.errors import InputError
from greedynas_fast.runtime import LineLog, MetricsLog, read_rows
from greedynas_fast.runtime.lines import append_bytes
from greedynas_fast.runtime.metrics import to_plain

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def row(step: int, stage: str = "train", kind: str = "step", **more: Any) -> dict[str, Any]:
    return {"stage": stage, "kind": kind, "step": step, **more}


def test_lines_append_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "paths.txt"
    with LineLog(path) as log:
        log.append(["012", "210"])
        log.append([])
        log.append(iter(["111"]))
        assert len(log) == 3
    with LineLog(path) as log:
        assert len(log) == 3
        log.truncate_to(1)
        log.append(["222"])
        log.sync()
        assert log.read() == ["012", "222"]
        with pytest.raises(InputError, match="expected at least 5 lines to go on from the checkpoint, found 2"):
            log.truncate_to(5)
        with pytest.raises(ValueError, match="no line end"):
            log.append(["ok", "a\nb"])
        log.truncate_to(0)
    assert path.read_bytes() == b""


@given(lines=st.lists(st.text("0123456789abc", max_size=6)), torn=st.text("0123456789", max_size=5))
def test_torn_line_is_dropped(tmp_path_factory: pytest.TempPathFactory, lines: list[str], torn: str) -> None:
    path = tmp_path_factory.mktemp("log") / "a.txt"
    path.write_text("".join(f"{line}\n" for line in lines) + torn)
    with LineLog(path) as log:
        assert len(log) == len(lines)
        log.append(["end"])
        assert log.read() == [*lines, "end"]


def test_torn_line_over_several_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 10 + b"\n" + b"y" * (3 << 20))
    with LineLog(path) as log:
        assert log.read() == ["x" * 10]


@needs_full
def test_full_disk() -> None:
    with open("/dev/full", "ab", buffering=0) as file, pytest.raises(InputError, match="the disk is full"):
        append_bytes(file, Path("paths.txt"), b"012\n")


def test_half_a_write_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    class Filling:
        """A file that takes three bytes more, then says the disk is full."""

        def __init__(self) -> None:
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115
            self.fileno, self.truncate = self.file.fileno, self.file.truncate
            self.room = 3

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(28, os.strerror(28))
            done = self.file.write(data[: self.room])
            self.room -= done
            return done

    path.write_bytes(b"old\n")
    file = Filling()
    with pytest.raises(InputError, match="the disk is full"):
        append_bytes(file, path, b"a long line\n")  # type: ignore[arg-type]
    file.file.close()
    assert path.read_bytes() == b"old\n"


@pytest.mark.parametrize("log_class", [LineLog, MetricsLog])
def test_unwritable(tmp_path: Path, log_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="read-only"):
        log_class(tmp_path / "a")


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.append(
            row(
                1,
                loss=float("nan"),
                accuracy=np.float32(0.5),
                q=None,
                count=np.int64(3),
                last=torch.tensor(2.5),
                flag=True,
                merges=[{"layer": 1, "similarity": float("inf")}],
                many=np.array([1.0, np.nan]),
            )
        )
    text = (tmp_path / "m.jsonl").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(text, parse_constant=refuse) == row(
        1,
        loss=None,
        accuracy=0.5,
        q=None,
        count=3,
        last=2.5,
        flag=True,
        merges=[{"layer": 1, "similarity": None}],
        many=[1.0, None],
    )


def test_metrics_check_the_row(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        with pytest.raises(ValueError, match=r"missing \['kind'\]"):
            log.append({"stage": "train", "step": 1})
        with pytest.raises(TypeError, match="got object"):
            log.append(row(1, bad=object()))
        assert log.read() == []


def test_metrics_are_cut_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        for step in range(4):
            log.append(row(step))
        log.append(row(3, kind="update", loss=0.1))
        log.append(row(9, stage="search"))
    with open(path, "ab") as file:
        file.write(b'{"stage": "train", "kind": "st')
    with MetricsLog(path) as log:
        log.truncate_after("train", 1)
        log.append(row(2, again=True))
        assert log.read() == [row(0), row(1), row(9, stage="search"), row(2, again=True)]
        log.truncate_after("train", -1)
        assert log.read() == [row(9, stage="search")]
    assert os.listdir(tmp_path) == ["m.jsonl"]


@pytest.mark.parametrize("torn", ["", "{", '{"stage": "train", "kind": "st', "1", "[1]"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_end_is_mended_at_opening(tmp_path: Path, torn: str, whole: bool) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text((json.dumps(row(1)) + "\n" if whole else "") + torn)
    before = [row(1)] if whole else []
    assert read_rows(path) == before
    with MetricsLog(path) as log:
        log.append(row(2))
    assert read_rows(path) == [*before, row(2)]


def test_last_row_without_line_end_but_whole_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row(1)))
    with MetricsLog(path) as log:
        log.append(row(2))
    assert read_rows(path) == [row(1), row(2)]


def test_cutting_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.append(row(1, loss=0.1))
        before = path.stat().st_ino
        log.truncate_after("train", 1)
        assert path.stat().st_ino == before


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps(row(1)) + "\nrubbish\n" + json.dumps(row(2)) + "\n")
    with pytest.raises(InputError, match=r"m\.jsonl, line 2: expected a JSON object, got 'rubbish'"):
        read_rows(path)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50)
@given(json_like)
def test_to_plain_changes_nothing_but_numbers_that_are_not_finite(value: Any) -> None:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, float):
            return b is None if not math.isfinite(a) else a == b
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return bool(a == b)

    assert same(value, json.loads(json.dumps(to_plain(value), allow_nan=False)))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    events = tmp_path / "events"
    with MetricsLog(tmp_path / "m.jsonl", events) as log:
        for step in range(5):
            log.append(row(step, loss=float(step)))
    with MetricsLog(tmp_path / "m.jsonl", events) as log:
        log.truncate_after("train", 2)
        log.append(row(3, loss=30.0, note="text", flag=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(events / "train"))
    accumulator.Reload()
    assert accumulator.Tags()["scalars"] == ["step/loss"]
    assert [(e.step, e.value) for e in accumulator.Scalars("step/loss")] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_tensorboard_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said: list[str] = []
    with MetricsLog(tmp_path / "m.jsonl", tmp_path / "events", notify=said.append) as log:
        for step in range(3):
            log.append(row(step, loss=1.0))
        log.truncate_after("train", 1)
    assert said == [
        "tensorboard is not installed, so events/ stays empty (remedy: pip install 'greedynas_fast[tensorboard]')."
    ]
    assert len(read_rows(tmp_path / "m.jsonl")) == 2
    with MetricsLog(tmp_path / "m.jsonl", tmp_path / "events"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "not installed" in err
