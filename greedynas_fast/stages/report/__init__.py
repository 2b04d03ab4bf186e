"""The report of a run: one HTML page made of the run folder's files alone, with nothing loaded from elsewhere.

What lives here: `read.py` (the run folder, read without trust), `charts.py` and `heatmap.py` (SVG), `html.py` and
`style.py` (the look), the parts of the page (`overview.py`, `training.py`, `searching.py`, `network.py`), and
`figures.py` (figures for papers). What does not: anything that trains or scores. The page holds no date, so the same
run gives the same bytes.
"""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.report import overview, searching, training
from greedynas_fast.stages.report.figures import write_figures
from greedynas_fast.stages.report.read import RunRecord, read_run
from greedynas_fast.stages.report.style import style_sheet

if TYPE_CHECKING:
    from greedynas_fast.config import ConfigSource
    from greedynas_fast.stages.context import Reporter

__all__ = ["build_report", "report", "write_report"]

PARTS = (
    ("results", "results"),
    ("network", "network"),
    ("train", "training"),
    ("filter", "filter"),
    ("shrinkage", "shrinkage"),
    ("search", "search"),
    ("retrain", "retraining"),
    ("reproduce", "commands"),
)


def build_report(run_dir: Path, space: SearchSpace) -> str:
    """The report of a run as the text of one HTML page.

    Every file of the run folder is optional: a part without its file says so and names the command that makes it.

    Args:
        run_dir: the run folder.
        space: the search space of the run.

    Returns:
        HTML that refers to nothing outside itself.

    Raises:
        InputError: `run_dir` is not a folder.
    """
    return _page(_record(Path(run_dir)), space)


def _record(folder: Path) -> RunRecord:
    if not folder.is_dir():
        raise InputError(f"report: the run folder {folder} does not exist.")
    return read_run(folder)


def _page(record: RunRecord, space: SearchSpace) -> str:
    sections = [
        overview.results_section(record, space),
        overview.network_section(record, space),
        training.training_section(record),
        training.filter_section(record),
        training.shrinkage_section(record, space),
        searching.search_section(record),
        training.retraining_section(record),
        overview.reproduce_section(record),
    ]
    links = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in PARTS)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(record.folder.name or 'run')} · greedynas_fast</title><style>{style_sheet()}</style>"
    )
    main = overview.header(record, space) + f"<nav>{links}</nav>" + "\n".join(sections)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{main}</main></body></html>\n'


def write_report(run_dir: Path, space: SearchSpace) -> Path:
    """Writes `report.html` into the run folder, at once or not at all.

    Args:
        run_dir: the run folder.
        space: the search space of the run.

    Returns:
        The file.

    Raises:
        InputError: `run_dir` is not a folder.
    """
    return _write_page(_record(Path(run_dir)), space)


def _write_page(record: RunRecord, space: SearchSpace) -> Path:
    from greedynas_fast.runtime import atomic_write

    file = record.folder / "report.html"
    atomic_write(file, _page(record, space).encode("utf-8"))
    return file


def report(path: Path, source: ConfigSource, reporter: Reporter, *, figures: bool = False) -> dict[str, Any]:
    """The command `report`: writes the report of a run, also of one that is under way (it takes no lock).

    Args:
        path: the run folder.
        source: what the command line asked for; the report has no settings.
        reporter: how to talk to people; there is nothing to say.
        figures: also write figures for papers into `figures/`.

    Returns:
        `report`: the file; `figures`: the files, if asked for; `next`: what finishes the run, or exports it.

    Raises:
        InputError: no such run, one that no stage has started yet, or figures without matplotlib.
    """
    from greedynas_fast.runtime import RunFolder, read_json

    file = RunFolder(path).space
    if not file.is_file():
        raise InputError(f"report: the run {path} has not started yet. Start it: greedynas-fast train --run {path}")
    record, space = _record(Path(path)), SearchSpace.from_dict(read_json(file))
    result: dict[str, Any] = {"report": str(_write_page(record, space))}
    if figures:
        result["figures"] = [str(figure) for figure in write_figures(record, space)]
    folder_text = shlex.quote(str(path))
    finished = f"greedynas-fast export {folder_text} --export.formats '[safetensors,onnx]'"
    return {**result, "next": finished if record.result else f"greedynas-fast run --run {folder_text}"}
