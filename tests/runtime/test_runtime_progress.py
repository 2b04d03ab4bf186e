"""Progress: plain lines now and then, a bar on a terminal, silence on standard output for JSON."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from greedynas_fast.runtime import Progress
from greedynas_fast.runtime.progress import format_field, format_seconds


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_plain_lines() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("train", 100, unit_size=64, stream=stream, interval_s=10, clock=clock) as progress:
        for step in range(1, 101):
            clock.now_s += 0.5
            progress.update(step, loss=2.0 / step, q=None, merged=3)
            if step == 30:
                progress.message("filter 1 trained")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train 1/100  loss 2  q -  merged 3  images/s 128  left 50s"
    assert lines[1] == "train 21/100  loss 0.09524  q -  merged 3  images/s 128  left 40s"
    assert lines[2] == "filter 1 trained"
    assert [line.split()[1] for line in lines if line.startswith("train")] == [
        f"{n}/100" for n in (1, 21, 41, 61, 81, 100)
    ]
    assert lines[-1].endswith("left 0s")


def test_speed_counts_only_this_process() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("train", 100, start=90, unit_size=10, stream=stream, clock=clock) as progress:
        progress.update(90)
        clock.now_s += 11
        progress.update(95)
    assert stream.getvalue().splitlines() == ["train 90/100", "train 95/100  images/s 5  left 11s"]


def test_quiet_uses_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("search", 2, quiet=True) as progress:
        progress.update(2, best=0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("search 2/2  best 0.5")
    with Progress("search", 2) as progress:
        progress.update(2)
    out, err = capsys.readouterr()
    assert out.startswith("search 2/2")
    assert err == ""


def test_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("train", 10, stream=stream) as progress:
        progress.update(5, loss=1.25)
        progress.message("a [bold] notice")
    assert "a [bold] notice" in stream.getvalue()
    assert "train" in stream.getvalue()
    assert "loss 1.25" in stream.getvalue()


def test_rich_is_not_imported_elsewhere() -> None:
    code = (
        "import sys; from greedynas_fast.runtime import Progress\n"
        "with Progress('a', 1) as p: p.update(1)\n"
        "heavy = {'rich', 'yaml', 'torchvision', 'tensorboard'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (0.123456, "0.1235"), ("vpu", "vpu"), (1e-9, "1e-09")]
)
def test_format_field(value: int | float | str | None, text: str) -> None:
    assert format_field(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (59.4, "59s"), (187, "3m07s"), (7500, "2h05m")])
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
