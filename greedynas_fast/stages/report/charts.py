"""Charts as inline SVG text: lines and dots. No library, no script, no colour that is not a CSS class.

Colours live in `style.py` (`--c1` .. `--c6`, `--ink`, `--grid`, ..), so one SVG fits a light and a dark page. Every
function takes numbers that may be NaN or infinite and leaves those out; a chart without a finite point is "".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Kind = Literal["plain", "percent", "count"]
Style = Literal["line", "faint", "dots"]

MAX_POINTS = 400  # of a line: more cannot be told apart at 520 pixels
MAX_DOTS = 1200


@dataclass(frozen=True)
class Series:
    """One curve. `slot` picks the colour (1 .. 6), `style` how it is drawn; only `line` is in the legend."""

    name: str
    x: Floats
    y: Floats
    slot: int = 1
    style: Style = "line"


@dataclass(frozen=True)
class Mark:
    """A dashed reference line across the chart at `value` on the `axis`."""

    value: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True)
class Dot:
    """One point of a scatter chart; `css` is its class and `note` what shows under the pointer."""

    x: float
    y: float
    css: str
    note: str
    radius: float = 3.0


def number_text(value: float, kind: Kind = "plain", digits: int = 3) -> str:
    """A number as people read it: `0.953` -> `95.3 %` (percent), `323520704` -> `324 M` (count); `–` if not finite."""
    if not math.isfinite(value):
        return "–"
    if kind == "percent":
        return f"{100 * value:.{digits}g} %" if abs(value) < 1 else f"{100 * value:.0f} %"
    if kind == "count":
        for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
            if abs(value) >= size * 0.9995:
                scaled = value / size
                whole = f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.{digits}g}"
                return whole + unit
        return f"{value:.{digits}g}" if value % 1 else f"{value:.0f}"
    return f"{value:.{digits}g}"


def accuracy_text(value: float) -> str:
    """An accuracy (0 .. 1) with two decimals, `94.30 %`, so that a column of them lines up."""
    return f"{100 * value:.2f} %" if math.isfinite(value) else "–"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return []
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(x: Floats, y: Floats, limit: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """At most `limit` points: means over equal runs of neighbours; a run without a finite value stays a gap (NaN)."""
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit + 1).astype(int)
    means = [[_mean(v[a:b]) for a, b in itertools.pairwise(edges)] for v in (x, y)]
    return np.array(means[0]), np.array(means[1])


def smooth(y: Floats, reach: int) -> Floats:
    """Mean over `reach` neighbours on each side, blind to NaN.

    Near the ends it takes fewer, as many on either side, so that it does not lag; but not fewer than a third of `reach`
    where there are any, so that the ends are no noisier than the rest.
    """
    finite = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    i = np.arange(len(y))
    wide = np.maximum(reach // 3, np.minimum(reach, np.minimum(i, len(y) - 1 - i)))
    low, high = np.maximum(i - wide, 0), np.minimum(i + wide + 1, len(y))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = (total[high] - total[low]) / (count[high] - count[low])
    return mean


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


@dataclass(frozen=True)
class _Frame:
    """The plot area: data range to pixels, and the drawing of its axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int
    height: int
    left: int = 52
    right: int = 16
    top: int = 12
    bottom: int = 42

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a data point."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        u, v = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return (
            self.left + u * (self.width - self.left - self.right),
            self.height - self.bottom - v * (self.height - self.top - self.bottom),
        )

    def axes(self, x_label: str, y_label: str, x_kind: Kind, y_kind: Kind) -> list[str]:
        """Grid lines, ticks and axis names."""
        x_end, y_end = self.width - self.right, self.height - self.bottom
        out = []
        for value in ticks(*self.y_range):
            y = self.at(self.x_range[0], value)[1]
            out.append(f'<line class="grid" x1="{self.left}" x2="{x_end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            out.append(
                f'<text class="tick end" x="{self.left - 8}" y="{y + 4:.1f}">{number_text(value, y_kind)}</text>'
            )
        for value in ticks(*self.x_range, wanted=6):
            x = self.at(value, self.y_range[0])[0]
            out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y_end}" y2="{y_end + 4}"/>')
            out.append(f'<text class="tick mid" x="{x:.1f}" y="{y_end + 17}">{number_text(value, x_kind)}</text>')
        out.append(f'<line class="axis" x1="{self.left}" x2="{x_end}" y1="{y_end}" y2="{y_end}"/>')
        middle = (self.left + x_end) / 2
        out.append(f'<text class="name mid" x="{middle:.0f}" y="{self.height - 6}">{escape(x_label)}</text>')
        if y_label:
            y = (self.top + y_end) / 2
            turn = f"rotate(-90 11 {y:.0f})"
            out.append(f'<text class="name mid" x="11" y="{y:.0f}" transform="{turn}">{escape(y_label)}</text>')
        return out

    def mark(self, mark: Mark) -> str:
        """A reference line with its label; nothing outside the plot."""
        low, high = self.x_range if mark.axis == "x" else self.y_range
        if not (math.isfinite(mark.value) and low <= mark.value <= high):
            return ""
        label = escape(mark.label)
        if mark.axis == "x":
            x = self.at(mark.value, self.y_range[0])[0]
            line = f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.height - self.bottom}"/>'
            side, dx = ("end", -5) if x > self.width / 2 else ("", 5)
            return (
                line + f'<text class="note {side}" x="{x + dx:.1f}" y="{self.height - self.bottom - 8}">{label}</text>'
            )
        y = self.at(self.x_range[0], mark.value)[1]
        line = f'<line class="mark" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        return line + f'<text class="note" x="{self.left + 5}" y="{y - 5:.1f}">{label}</text>'


def _padded(values: Floats, share: float, limits: tuple[float, float] | None = None) -> tuple[float, float] | None:
    """Range of the finite values, widened by `share` of it and cut to `limits`; None if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size or size < 1e-100:  # one value, or as good as one
        pad = max(0.1 * size, 1e-9) if size else 0.5
    else:
        pad = share * (high - low)
    low, high = low - pad, high + pad
    if limits is not None and max(low, limits[0]) < min(high, limits[1]):
        return max(low, limits[0]), min(high, limits[1])
    return low, high


def svg(width: int, height: int, title: str, body: Sequence[str], css: str = "chart", max_width: int = 0) -> str:
    """The SVG element; `title` is its name for screen readers, `max_width` in pixels keeps a small one small."""
    style = f' style="max-width:{max_width}px"' if max_width else ""
    head = f'<svg class="{css}" viewBox="0 0 {width} {height}"{style} role="img" aria-label="{escape(title)}">'
    return head + "".join(body) + "</svg>"


def _polyline(frame: _Frame, series: Series) -> str:
    """The curve as one SVG path, broken where a value is missing; a lone point becomes a dot."""
    x, y = thin(series.x, series.y)
    parts: list[str] = []
    dots: list[tuple[float, float]] = []
    run: list[tuple[float, float]] = []
    points = [frame.at(a, b) if math.isfinite(a) and math.isfinite(b) else None for a, b in zip(x, y, strict=True)]
    for point in [*points, None]:
        if point is not None:
            run.append(point)
            continue
        if len(run) > 1:
            parts.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in run))
        elif run:
            dots += run
        run = []
    css = " faint" if series.style == "faint" else ""
    line = f'<path class="line s{series.slot}{css}" d="{"".join(parts)}"/>' if parts else ""
    return line + _circles(dots, series.slot, 3.2)


def _dots(frame: _Frame, series: Series) -> str:
    """Every point by itself, of very many every n-th."""
    stride = -(-len(series.x) // MAX_DOTS)
    pairs = zip(series.x[::stride], series.y[::stride], strict=True)
    points = [frame.at(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    return _circles(points, series.slot, 2.0, " out")


def _circles(points: Sequence[tuple[float, float]], slot: int, radius: float, css: str = "") -> str:
    return "".join(f'<circle class="f{slot}{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>' for x, y in points)


def legend(names: Sequence[tuple[str, str]]) -> str:
    """(CSS class of the swatch, name) pairs as an HTML legend."""
    items = "".join(f'<span><i class="{css}"></i>{escape(name)}</span>' for css, name in names)
    return f'<div class="legend">{items}</div>'


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    y_kind: Kind = "plain",
    limits: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = (520, 260),
) -> str:
    """Curves over a shared x axis, with a legend where there is more than one.

    Args:
        series: the curves, drawn in order.
        title: the heading of the figure (text, not HTML).
        x_label: the name of the x axis.
        y_kind: how y values are written.
        limits: bounds beyond which the y axis is not padded, e.g. (0, 1) for a share.
        marks: reference lines; they widen no axis.
        size: width and height in SVG units.

    Returns:
        An HTML `<figure>`, or "" if no point is finite.
    """
    series = [s for s in series if (np.isfinite(s.x) & np.isfinite(s.y)).any()]
    if not series:
        return ""
    x_range = _padded(np.concatenate([s.x for s in series]), 0.0)
    heights = [s.y if s.style == "dots" else thin(s.x, s.y)[1] for s in series]
    y_range = _padded(np.concatenate(heights), 0.06, limits)
    if x_range is None or y_range is None:
        return ""
    frame = _Frame(x_range, y_range, *size)
    body = frame.axes(x_label, "", "count", y_kind)
    body += [frame.mark(mark) for mark in marks]
    body += [_dots(frame, s) if s.style == "dots" else _polyline(frame, s) for s in series]
    named = [(f"b{s.slot}", s.name) for s in series if s.style == "line"]
    key = legend(named) if len(named) > 1 else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{key}{svg(*size, title, body)}</figure>"


def scatter_chart(
    dots: Sequence[Dot],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_kind: Kind = "count",
    y_kind: Kind = "percent",
    front: Sequence[tuple[float, float]] = (),
    marks: Sequence[Mark] = (),
    key: str = "",
    size: tuple[int, int] = (1040, 450),
) -> str:
    """Points with tooltips, and a stair line (`front`) through some of them.

    Returns:
        An HTML `<figure>`, or "" if no point is finite. `key` is HTML that is put between heading and chart.
    """
    shown = [d for d in dots if math.isfinite(d.x) and math.isfinite(d.y)]
    limit_x = [m.value for m in marks if m.axis == "x" and math.isfinite(m.value)]
    x_range = _padded(np.array([d.x for d in shown] + limit_x), 0.05)
    y_range = _padded(np.array([d.y for d in shown]), 0.08)
    if not shown or x_range is None or y_range is None:
        return ""
    frame = _Frame(x_range, y_range, *size, left=66)
    body = frame.axes(x_label, y_label, x_kind, y_kind) + [frame.mark(mark) for mark in marks]
    stairs = [frame.at(x, y) for x, y in front]
    if len(stairs) > 1:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in stairs[1:])
        body.append(f'<path class="front" d="M{stairs[0][0]:.1f} {stairs[0][1]:.1f}{steps}"/>')
    for dot in shown:
        x, y = frame.at(dot.x, dot.y)
        circle = f'<circle class="{dot.css}" cx="{x:.1f}" cy="{y:.1f}" r="{dot.radius:g}">'
        body.append(f"{circle}<title>{escape(dot.note)}</title></circle>")
    return f"<figure><figcaption>{escape(title)}</figcaption>{key}{svg(*size, title, body)}</figure>"
