"""The stopwatch against a clock that is moved by hand."""

from __future__ import annotations

import contextlib

import pytest

from greedynas_fast.runtime import Stopwatch, stopwatch


def test_it_adds_up_and_tells_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])
    watch = Stopwatch()
    now[0] += 3.0
    for inside in (0.5, 1.5):
        with watch:
            now[0] += inside
    with contextlib.suppress(KeyError), watch:
        now[0] += 1.0
        raise KeyError
    now[0] += 14.0
    assert watch.elapsed_s == 3.0
    assert watch.summary() == "3.00 s, 15.00% of the time"
