"""Square matrices of similarities as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from greedynas_fast.stages.report.charts import number_text, svg

HEAT_STEPS = 10  # colour classes on each side of zero


def heat_class(value: float) -> str:
    """CSS class of a similarity in [-1, 1]: `h-10` .. `h0` .. `h10`, `hx` for a missing value."""
    if not math.isfinite(value):
        return "hx"
    return f"h{round(HEAT_STEPS * min(1.0, max(-1.0, value))):d}"


def heatmap(
    matrix: npt.NDArray[np.float32], names: Sequence[str], *, title: str, cell: int, labelled: bool, lower: bool = False
) -> str:
    """A square matrix of similarities in [-1, 1].

    Args:
        matrix: [n, n]; NaN cells stay blank.
        names: n row (and column) names.
        title: what the matrix shows, for the heading of a small one and for screen readers.
        cell: side of a cell in SVG units.
        labelled: with row and column names, numbers and tooltips; else bare cells, one SVG path a colour.
        lower: only the lower triangle and the diagonal (the matrix is symmetric).

    Returns:
        An `<svg>` element.
    """
    count = len(names)
    cells = [(r, c) for r in range(count) for c in range((r + 1) if lower else count)]
    if not labelled:
        by_class: dict[str, list[str]] = {}
        for r, c in cells:
            by_class.setdefault(heat_class(float(matrix[r, c])), []).append(f"M{c} {r}h1v1h-1z")
        body = [f'<path class="{css}" d="{"".join(parts)}"/>' for css, parts in sorted(by_class.items())]
        return svg(count, count, title, body, css="heat bare")
    margin = 12 + max(len(name) for name in names) * 7
    body = []
    for r, c in cells:
        value, x, y = float(matrix[r, c]), float(margin + c * cell), float(r * cell)
        note = f"{names[r]} and {names[c]}: {number_text(value, digits=2)}"
        body.append(
            f'<rect class="{heat_class(value)}" x="{x:g}" y="{y:g}" width="{cell - 1}" height="{cell - 1}" rx="2">'
        )
        body.append(f"<title>{escape(note)}</title></rect>")
        if cell >= 28 and math.isfinite(value):
            ink = " strong" if abs(value) > 0.62 else ""
            text = f"{value:.2f}".replace("0.", ".").replace("1.00", "1").replace("-", "−")
            body.append(f'<text class="cell{ink}" x="{x + (cell - 1) / 2}" y="{y + cell / 2 + 3.5}">{text}</text>')
    for i, name in enumerate(names):
        middle = i * cell + cell / 2
        body.append(f'<text class="tick end" x="{margin - 6}" y="{middle + 4}">{escape(name)}</text>')
        x, y = margin + middle, count * cell + 8.0
        turn = f"rotate(-90 {x} {y})"
        body.append(f'<text class="tick end" x="{x}" y="{y + 4}" transform="{turn}">{escape(name)}</text>')
    side = margin + count * cell
    return svg(side, side, title, body, css="heat", max_width=round(1.1 * side))
