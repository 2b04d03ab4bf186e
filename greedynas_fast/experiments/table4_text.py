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
        f"{'loss':<7}{'data':>6}  {'precision':>13} {'recall':>13} {'AUROC':>15} {'good prec.':>13} {'good recall':>13}"
        f" {'unseen prec.':>13} {'s':>6}",
    ]
    lines += [_row(row) for row in result["rows"]]
    base = result["baseline"]
    lines += [
        f"{'trivial':<7}{'':>6}  {100 * base['precision']:>13.2f} {100 * base['recall']:>13.2f} {base['auroc']:>15.4f}"
        f" {'-':>13} {100 * base['good_recall']:>13.2f} {'-':>13} {'-':>6}   ({base['name']})",
        "",
    ]
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
    unseen = row["unseen"]["precision"] if row["unseen"] else None
    return (
        f"{row['loss']:<7}{100 * row['fraction']:>4g} %  {_percent(row['precision']):>13} {_percent(row['recall']):>13}"
        f" {_spread(row['auroc'], 1, 4):>15} {_percent(row['good_precision']):>13} {_percent(row['good_recall']):>13}"
        f" {_percent(unseen):>13} {row['elapsed_s']['mean']:>6.0f}"
    )


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
