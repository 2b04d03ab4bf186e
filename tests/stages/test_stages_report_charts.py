"""The arithmetic behind the report's charts."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greedynas_fast.stages.report.charts import Mark, Series, line_chart, number_text, smooth, thin, ticks
from greedynas_fast.stages.report.heatmap import heat_class, heatmap

NUMBERS = st.floats(-1e90, 1e90)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.953, "percent", "95.3 %"),
        (1.0, "percent", "100 %"),
        (0.0, "percent", "0 %"),
        (323_520_704, "count", "324 M"),
        (999_700, "count", "1 M"),
        (1500, "count", "1.5 k"),
        (4.1e9, "count", "4.1 G"),
        (0, "count", "0"),
        (0.00012, "plain", "0.00012"),
        (math.nan, "plain", "–"),
        (math.inf, "count", "–"),
    ],
)
def test_numbers_as_text(value: float, kind: str, text: str) -> None:
    assert number_text(value, kind) == text  # type: ignore[arg-type]


@given(NUMBERS, st.floats(1e-6, 1e90))
def test_ticks_are_even_and_inside(low: float, width: float) -> None:
    high = low + width
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 8
    slack = 1e-6 * (high - low)
    assert all(low - slack <= value <= high + slack for value in found)
    gaps = np.diff(found)
    assert np.allclose(gaps, gaps[:1], rtol=1e-3, atol=slack)


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.03, 0.11) == [0.0, 0.05, 0.1]
    assert ticks(1, 1) == ticks(0, math.nan) == []


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), max_size=40), st.integers(0, 9))
def test_smooth_is_the_mean_of_the_neighbours(values: list[float], reach: int) -> None:
    y = np.array(values)
    for i, value in enumerate(smooth(y, reach)):
        wide = max(reach // 3, min(reach, i, len(y) - 1 - i))
        near = [v for v in values[max(0, i - wide) : i + wide + 1] if not math.isnan(v)]
        assert math.isnan(value) if not near else value == pytest.approx(sum(near) / len(near), abs=1e-9)


def test_thin_keeps_means_and_gaps() -> None:
    x = np.arange(1000.0)
    y = x * 2
    y[400:600] = np.nan
    thin_x, thin_y = thin(x, y, 100)
    assert len(thin_x) == len(thin_y) == 100
    assert thin_x[0] == 4.5
    assert np.array_equal(np.isnan(thin_y), (np.arange(100) >= 40) & (np.arange(100) < 60))
    assert np.allclose(thin_y[:40], 2 * thin_x[:40])
    assert thin(x, y, 1000)[0] is x


def points(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'<path class="line[^"]*" d="M([^"]*)"', svg)
    assert path
    return [(float(a), float(b)) for a, b in (pair.split() for pair in path.group(1).split("L"))]


def test_curve_is_where_its_values_are() -> None:
    x, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.5, 1.0])
    svg = line_chart([Series("a", x, y)], title="t", limits=(0, 1))
    found = points(svg)
    left, top, right, bottom = 52, 12, 520 - 16, 260 - 42
    expected = [(left + (right - left) * a / 4, bottom - (bottom - top) * b) for a, b in zip(x, y, strict=True)]
    assert np.allclose(found, expected, atol=0.06)


def test_gaps_and_lone_points() -> None:
    x = np.arange(5.0)
    svg = line_chart([Series("a", x, np.array([1.0, 2.0, np.nan, 3.0, np.nan]))], title="t")
    assert svg.count("<circle") == 1
    assert len(points(svg)) == 2
    assert line_chart([Series("a", x, x * np.nan)], title="t") == ""
    assert line_chart([], title="t") == ""
    assert "<circle" in line_chart([Series("a", x[:1], x[:1])], title="t")


def test_marks_outside_the_plot_are_left_out() -> None:
    x = np.arange(5.0)
    for value, shown in ((2.0, True), (99.0, False), (math.nan, False)):
        for axis in ("x", "y"):
            svg = line_chart([Series("a", x, x)], title="t", marks=[Mark(value, "here", axis)])  # type: ignore[arg-type]
            assert ("here" in svg) == shown


def test_heat_classes() -> None:
    assert [heat_class(v) for v in (-1, -0.5, 0, 0.04, 0.5, 1, 7, math.nan)] == [
        *("h-10", "h-5", "h0", "h0", "h5", "h10", "h10", "hx")
    ]


def test_small_heatmap_has_every_cell_once() -> None:
    matrix = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    svg = heatmap(matrix, ["a", "b", "c", "d"], title="t", cell=1, labelled=False)
    cells = re.findall(r"M(\d) (\d)h1v1h-1z", svg)
    assert sorted(cells) == [(str(c), str(r)) for c in range(4) for r in range(4)]
    assert svg.count("<path") == len({heat_class(float(value)) for value in matrix.flat})
