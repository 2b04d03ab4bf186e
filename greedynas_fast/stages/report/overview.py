"""The parts about the whole run: head, key results, the found network, commands, configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.stages.report import html
from greedynas_fast.stages.report.charts import accuracy_text, number_text
from greedynas_fast.stages.report.network import draw_network
from greedynas_fast.stages.report.read import Row, RunRecord, number, setting, text_of


def header(record: RunRecord, space: SearchSpace) -> str:
    """The run's name, its space and data, and how far it has come."""
    data = ""
    if isinstance(record.config.get("data"), dict):
        data = text_of(setting(record.config, "data.root")) or "the embedded sample"
    facts = [
        f"space {space.name}",
        f"{space.num_layers} layers, {space.max_ops} operations",
        _size_text(space.size),
        f"data {data}" if data else "",
        f"{space.num_classes} classes",
        f"{space.resolution} × {space.resolution} pixels",
    ]
    lead = f'<p class="lead">{escape(" · ".join(fact for fact in facts if fact))}</p>'
    return f"<h1>{escape(record.folder.name or 'run')}</h1>{lead}{_stages(record)}"


def _size_text(size: int) -> str:
    """`2.5 × 10²³ paths`; a small number is written out."""
    if size < 1_000_000:
        return f"{size} paths"
    power = len(str(size)) - 1
    superscript = str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{size / 10**power:.1f} × 10{superscript} paths"


def _stages(record: RunRecord) -> str:
    """Which stages are done, begun and not begun."""
    begun = {
        "train": bool(record.select("train", "step", "update", "epoch", "final")),
        "search": bool(record.search),
        "retrain": bool(record.select("retrain", "step", "epoch")) or bool(record.network),
        "evaluate": bool(record.result),
    }
    done = {
        "train": bool(record.select("train", "final")) or begun["search"],
        "search": bool(record.best),
        "retrain": bool(record.network),
        "evaluate": bool(record.result),
    }
    items = []
    for stage in begun:
        css = "done" if done[stage] else ("part" if begun[stage] else "none")
        words = {"done": "", "part": ", under way", "none": ", not yet"}[css]
        items.append(f'<li class="{css}">{stage}{words}</li>')
    return f'<ul class="steps">{"".join(items)}</ul>'


def chosen_path(record: RunRecord, space: SearchSpace) -> npt.NDArray[np.uint8] | None:
    """The path of the retrained network, else of `best.json`; None if there is none that fits the space."""
    if reference_name(record):
        return None
    for row in (record.network, record.best):
        text = text_of(row.get("path"))
        if not text:
            continue
        try:
            return space.parse(text)
        except InputError:
            continue
    return None


def reference_name(record: RunRecord) -> str:
    """`timm:NAME` where the retrained network is a model of another library; "" otherwise."""
    library, name = text_of(record.network.get("library")), text_of(record.network.get("architecture"))
    return f"{library}:{name}" if library and name else ""


def _size(record: RunRecord, space: SearchSpace, path: npt.NDArray[np.uint8] | None) -> tuple[Row, int]:
    """`params` and `macs` of the chosen network, and the pixels a side that they are for."""
    if path is not None:
        cost = space.cost(path)
        return {"params": cost.params, "macs": cost.macs}, space.resolution
    shape = record.network.get("input_size")
    if not reference_name(record) or not isinstance(shape, list) or not shape or not isinstance(shape[-1], int):
        return {}, space.resolution
    return record.network, shape[-1]


def _last(rows: Sequence[Row], key: str) -> float:
    """The last finite number under a key."""
    values = (number(row, key) for row in reversed(rows))
    return next((value for value in values if math.isfinite(value)), math.nan)


def results_section(record: RunRecord, space: SearchSpace) -> str:
    """Test accuracy, size and MACs, and the path as text."""
    path = chosen_path(record, space)
    digits = space.format(path, style="digits") if path is not None else reference_name(record)
    # Figures of another path (the best one, where a given one was retrained) are not this network's.
    result = record.result if record.result.get("path", digits) == digits else {}
    best = record.best if record.best.get("path") == digits else {}
    accuracy, split = number(result, "top1"), text_of(result.get("split")) or "test"
    validation = _last(record.select("retrain", "epoch"), "val_accuracy")
    cost, pixels = _size(record, space, path)
    tiles = [
        (accuracy_text(accuracy), f"{split} accuracy, retrained alone"),
        (accuracy_text(validation), "validation accuracy, last epoch of retraining"),
        (accuracy_text(number(best, "accuracy")), "validation accuracy on the supernet"),
        (number_text(number(cost, "params"), "count", 4), "parameters"),
        (number_text(number(cost, "macs"), "count", 4), f"MACs at {pixels} × {pixels}"),
    ]
    shown = [tile for tile in tiles if tile[0] != "–"]
    body = html.tiles(shown) if shown else ""
    if path is not None:
        body += f'<h3>The path</h3><pre class="copy">{escape(space.format(path))}</pre>'
        body += f'<p class="soft">as digits: {html.code(digits)}</p>'
    elif digits:
        body += f"<h3>The network</h3><p>{html.code(digits)}</p>"
    else:
        body += html.missing("No path has been chosen yet.", record.folder, "search")
    if digits and math.isnan(accuracy):
        missing = "retrain" if not record.network else "evaluate"
        body += html.missing("The final accuracy is not measured yet.", record.folder, missing)
    body += "".join(html.warning(problem) for problem in record.problems)
    return html.section("results", "Key results", body)


def network_section(record: RunRecord, space: SearchSpace) -> str:
    """The chosen network, drawn."""
    path = chosen_path(record, space)
    if reference_name(record):
        body = html.note(f"{reference_name(record)} is not a network of the search space.")
    elif path is None:
        body = html.missing("No path has been chosen yet.", record.folder, "search")
    else:
        body = draw_network(space, path)
    return html.section("network", "The network", body)


def reproduce_section(record: RunRecord) -> str:
    """The commands of the run and its resolved configuration."""
    if record.commands:
        body = f'<pre class="copy">{escape(chr(10).join(record.commands))}</pre>'
    else:
        body = html.note("The run folder has no record of its commands (commands.txt).")
    if record.config_text:
        body += (
            "<details><summary>the resolved configuration (config.yaml)</summary>"
            f"<pre>{escape(record.config_text)}</pre></details>"
        )
    else:
        body += html.note("The run folder has no configuration (config.yaml).")
    return html.section("reproduce", "How to make it again", body, "The commands that made this run, in order.")
