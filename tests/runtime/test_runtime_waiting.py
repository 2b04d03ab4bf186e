"""The share of waiting, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

from greedynas_fast.runtime import Waiting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def items(clock: Clock, seconds: list[float]) -> Iterator[float]:
    for wait in seconds:
        clock.now += wait
        yield wait


def test_the_share_of_waiting() -> None:
    clock = Clock()
    waiting = Waiting(clock)
    shares = []
    for wait in waiting.over(items(clock, [1.0, 3.0, 0.0])):
        clock.now += 1.0
        shares.append((wait, waiting.share()))
    assert shares == [(1.0, 0.5), (3.0, 0.75), (0.0, 0.0)]


def test_over_several_items_and_loops() -> None:
    clock = Clock()
    waiting = Waiting(clock)
    for _ in range(2):
        for _ in waiting.over(items(clock, [1.0, 2.0])):
            clock.now += 3.0
    assert waiting.share() == 6 / 18
    assert waiting.share() == 0.0  # no time has gone by
    clock.now += 5.0
    waiting.restart()
    clock.now += 5.0
    assert waiting.share() == 0.0
