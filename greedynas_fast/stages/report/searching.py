"""The part about the search: every evaluated path, the front, the chosen one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from greedynas_fast.stages.report import html
from greedynas_fast.stages.report.charts import Dot, Mark, Series, accuracy_text, line_chart, number_text, scatter_chart
from greedynas_fast.stages.report.read import Row, RunRecord, column, number, setting, text_of
from greedynas_fast.stages.report.style import GENERATION_STEPS

BEST_SHOWN = 8


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats: fewer MACs, or more accuracy. In order of MACs, accuracy rising."""
    usable = [r for r in rows if math.isfinite(number(r, "macs")) and math.isfinite(number(r, "accuracy"))]
    best, out = -math.inf, []
    for row in sorted(usable, key=lambda r: (number(r, "macs"), -number(r, "accuracy"))):
        if number(row, "accuracy") > best:
            best = number(row, "accuracy")
            out.append(row)
    return out


def search_section(record: RunRecord) -> str:
    """Accuracy against MACs of all evaluated paths, the best so far, and the best few."""
    rows = record.search
    if not rows:
        text = "No path has been evaluated yet."
        return html.section("search", "Search", html.missing(text, record.folder, "search"))
    limit = setting(record.config, "search.max_macs")
    max_macs = float(limit) if isinstance(limit, int | float) and not isinstance(limit, bool) else math.nan
    generations = column(rows, "generation")
    finite = generations[np.isfinite(generations)]
    last = float(finite.max()) if len(finite) else 0.0
    body = [_pareto(record, rows, last, max_macs), html.grid(_progress(rows)), _best_table(rows, max_macs)]
    evaluated = f"{len(rows)} paths evaluated with the weights of the supernet, in {last + 1:.0f} generations"
    limited = f", at most {number_text(max_macs, 'count')} MACs." if math.isfinite(max_macs) else "."
    return html.section("search", "Search", "".join(body), evaluated + limited)


def _pareto(record: RunRecord, rows: Sequence[Row], last: float, max_macs: float) -> str:
    """All evaluated paths; colour = generation, outlined = on the front, ringed = chosen."""
    on_front = front(rows)
    members = {id(row) for row in on_front}
    dots = []
    for row in rows:
        generation, macs, accuracy = number(row, "generation"), number(row, "macs"), number(row, "accuracy")
        step = (
            round(GENERATION_STEPS * generation / last) if last > 0 and math.isfinite(generation) else GENERATION_STEPS
        )
        css = f"g{min(GENERATION_STEPS, max(0, step))}"
        inside = id(row) in members
        css += " on" if inside else (" out" if macs > max_macs else "")
        figures = f"{accuracy_text(accuracy)}, {number_text(macs, 'count')} MACs"
        note = f"{figures}, generation {text_of(row.get('generation'))}: {text_of(row.get('path'))}"
        dots.append(Dot(macs, accuracy, css, note, 4.2 if inside else 3.2))
    chosen = text_of(record.best.get("path"))
    same = [row for row in rows if chosen and text_of(row.get("path")) == chosen]
    row = (same or [record.best])[0]
    dots.append(Dot(number(row, "macs"), number(row, "accuracy"), "ring", f"the chosen path: {chosen}", 9))
    marks = [Mark(max_macs, f"limit {number_text(max_macs, 'count')}", "x")]
    key = (
        '<div class="legend"><span>first<i class="ramp"></i>last generation</span>'
        '<span><i class="b2"></i>front</span><span><i class="ring"></i>chosen</span></div>'
    )
    return scatter_chart(
        dots, title="Accuracy against multiply-accumulates", x_label="multiply-accumulates (MACs)",
        y_label="accuracy on the supernet", front=[(number(r, "macs"), number(r, "accuracy")) for r in on_front],
        marks=marks, key=key,
    )  # fmt: skip


def _progress(rows: Sequence[Row]) -> list[str]:
    """Best accuracy so far over evaluations, and MACs of what was evaluated."""
    ordered = sorted(rows, key=lambda row: number(row, "index"))
    x, accuracy = column(ordered, "index") + 1, column(ordered, "accuracy")
    best = np.fmax.accumulate(accuracy)
    curves = [Series("each path", x, accuracy, 1, "dots"), Series("best so far", x, best, 1)]
    macs = Series("MACs", x, column(ordered, "macs"), 6, "dots")
    return [
        line_chart(
            curves, title="Best accuracy so far", x_label="evaluated paths", y_kind="percent", limits=(0.0, 1.0)
        ),
        line_chart([macs], title="MACs of the evaluated paths", x_label="evaluated paths", y_kind="count"),
    ]


def _loss_text(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "–"


def _best_table(rows: Sequence[Row], max_macs: float) -> str:
    """The best few paths within the limit."""
    fits = [r for r in rows if not number(r, "macs") > max_macs and math.isfinite(number(r, "accuracy"))]
    ranked = sorted(fits, key=lambda row: (-number(row, "accuracy"), number(row, "macs")))[:BEST_SHOWN]
    cells = [
        (
            str(rank),
            accuracy_text(number(row, "accuracy")),
            _loss_text(number(row, "loss")),
            number_text(number(row, "macs"), "count"),
            number_text(number(row, "params"), "count"),
            text_of(row.get("path")),
        )
        for rank, row in enumerate(ranked, start=1)
    ]
    if not cells:
        return ""
    head = ("", "Accuracy", "Loss", "MACs", "Parameters", "Path")
    return f"<h3>The best {len(cells)} paths</h3>" + html.table(head, cells, numeric=(1, 2, 3, 4), fixed=(5,))
