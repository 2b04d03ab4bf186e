"""Table 4 as plain text."""

from __future__ import annotations

from typing import Any


def format_table(result: dict[str, Any]) -> str:
    """The document of `table4.run` as text of at most 120 columns.

    Args:
        result: what `run` returned.

    Returns:
        The table, the baseline, the paper's rows and where the settings differ; no newline at the end.
    """
    settings = result["settings"]
    seeds = settings["seeds"]
    lines = [
        f"Table 4 on NAS-Bench-Macro, budget {settings['budget']}, {len(seeds)} seed{'s' * (len(seeds) != 1)}"
        f" ({_seconds(result['elapsed_s'])} with {result['workers']} worker{'s' * (result['workers'] != 1)})",
        "weak = positive; precision, recall and good-class numbers in %, mean +- standard deviation over seeds",
        "",
        _line(
            "loss",
            "data",
            "precision",
            "recall",
            "AUROC",
            "good prec.",
            "good recall",
            "unseen prec.",
            "steps",
            "CPU s",
        ),
    ]
    lines += [_row(row) for row in result["rows"]]
    base = result["baseline"]
    trivial = (f"{100 * base['precision']:.2f}", f"{100 * base['recall']:.2f}", f"{base['auroc']:.4f}")
    lines += [_line("trivial", "", *trivial, "-", f"{100 * base['good_recall']:.2f}", "-", "-", "-"), ""]
    lines.append(f"trivial: {base['name']}")
    paper = result["paper"]
    for name in ("PU", "PN"):
        columns = zip(paper["fractions"], paper[name]["precision"], paper[name]["recall"], strict=True)
        figures = ", ".join(f"{100 * part:g} %: {prec:.2f}/{rec:.2f}" for part, prec, rec in columns)
        lines.append(f"paper {name}, precision/recall: {figures}")
    lines += ["", "Differences from the paper's settings:"]
    lines += [f"- {difference}" for difference in settings["differences_from_paper"]]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    """One line of the table."""
    return _line(
        row["loss"],
        f"{100 * row['fraction']:g} %",
        _percent(row["precision"]),
        _percent(row["recall"]),
        _spread(row["auroc"], 1, 4),
        _percent(row["good_precision"]),
        _percent(row["good_recall"]),
        _percent(row["unseen"]["precision"] if row["unseen"] else None),
        str(row["steps"]),
        f"{row['cpu_s']['mean']:.0f}",
    )


def _line(loss: str, data: str, *columns: str) -> str:
    """Columns of a fixed width."""
    *wide, steps, seconds = columns
    return f"{loss:<7}{data:>6} " + "".join(f"{text:>15}" for text in wide) + f"{steps:>7}{seconds:>6}"


def _percent(value: dict[str, float] | None) -> str:
    """Mean and deviation of a share."""
    return _spread(value, 100, 2)


def _spread(value: dict[str, float] | None, scale: float, digits: int) -> str:
    """Mean and deviation, or a dash."""
    if value is None:
        return "-"
    return f"{scale * value['mean']:.{digits}f}+-{scale * value['std']:.{digits}f}"


def _seconds(elapsed_s: float) -> str:
    """Minutes and seconds."""
    return f"{int(elapsed_s // 60)} min {int(elapsed_s % 60)} s"
