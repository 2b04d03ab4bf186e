"""Table 3: searched and hand-made networks on ImageNet (Sec. 5.2), ours beside the paper's figures.

Parameters and MACs are counted here; accuracies come from run folders that `retrain` and `evaluate` filled. MACs are
those of convolutions and linear layers, as everywhere in this package. The paper calls them FLOPs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.runtime import RunFolder, read_json
from greedynas_fast.spaces import Cost
from greedynas_fast.stages.architecture import TimmModel
from greedynas_fast.stages.model_files import architecture

NUM_CLASSES, RESOLUTION = 1000, 224
MOBILE, RESNET, OTHER = "mobile search space", "ResNet search space", "other networks"


class Entry(NamedTuple):
    """A row of the table.

    Attributes:
        group: the part of the table.
        name: of the network in the paper.
        network: what stands for it here: a published path, a model of timm, or None.
        top1: of the paper, in percent; None where it has none.
        top5: the same.
        macs_m: of the paper, in millions.
        params_m: of the paper, in millions.
        note: where the two differ.
    """

    group: str
    name: str
    network: str | None
    top1: float | None = None
    top5: float | None = None
    macs_m: float | None = None
    params_m: float | None = None
    note: str | None = None


_SAME_STRATEGY = "the paper trained it as GreedyNASv2-L"
TABLE = (
    Entry(MOBILE, "MobileNetV2", "timm:mobilenetv2_100", 72.0, 91.0, 300, 3.4),
    Entry(MOBILE, "EfficientNet-B0", "timm:efficientnet_b0", 76.3, 93.2, 390, 5.3),
    Entry(MOBILE, "SPOS", None, 74.7, None, 328, 3.4),
    Entry(MOBILE, "MCT-NAS-B", None, 76.9, 93.4, 327, 6.3),
    Entry(MOBILE, "K-shot-NAS-B", None, 77.2, 93.3, 332, 6.2),
    Entry(MOBILE, "NSENet", None, 77.3, None, 333, 7.6),
    Entry(MOBILE, "GreedyNAS-A", "GreedyNAS-A", note="not in Table 3"),
    Entry(MOBILE, "GreedyNAS-B", "GreedyNAS-B", 76.8, 93.0, 324, 5.2),
    Entry(MOBILE, "GreedyNAS-C", "GreedyNAS-C", note="not in Table 3"),
    Entry(
        MOBILE, "GreedyNASv2-S", None, 77.5, 93.5, 324, 5.7, "its path is not published; a run that searches fills this"
    ),
    Entry(RESNET, "ResNeXt-50", "timm:resnext50_32x4d", 77.8, None, 4230, 25.0),
    Entry(RESNET, "RegNetX-4.0GF", "timm:regnetx_040", 78.6, None, 3964, 22.1),
    Entry(RESNET, "RegNetY-4.0GF", "timm:regnety_040", note="not in Table 3; RegNetX with squeeze-and-excitation"),
    Entry(RESNET, "ResNet-50", "timm:resnet50", 78.8, 94.6, 4089, 25.6, _SAME_STRATEGY),
    Entry(RESNET, "SE-ResNeXt-50", "timm:seresnext50_32x4d", 78.9, 94.5, 4233, 27.6),
    Entry(RESNET, "SKNet-50", "timm:skresnext50_32x4d", 79.2, None, 4470, 27.5, "timm's SKNet-50 with 32 groups"),
    Entry(RESNET, "SK-ResNet-50", "timm:skresnet50", note="not in Table 3; without groups"),
    Entry(
        RESNET,
        "SE-ResNet-50",
        "timm:seresnet50",
        80.5,
        94.8,
        4094,
        30.6,
        f"timm's reduction is 16, the paper's size is that of 8; {_SAME_STRATEGY}",
    ),
    Entry(
        RESNET,
        "GreedyNASv2-L",
        None,
        81.1,
        95.4,
        4098,
        26.9,
        "its path is not published; a run that searches fills this",
    ),
)
# The row that the network of a search belongs to.
_SEARCHED = {"mb-se-mix-shuffle": "GreedyNASv2-S", "res50-se": "GreedyNASv2-L"}


@dataclass(frozen=True)
class Table3Config:
    """What to show.

    Attributes:
        runs: run folders with a retrained network, whose accuracies are shown.
    """

    runs: tuple[str, ...] = ()


def run(config: Table3Config) -> dict[str, Any]:
    """Count, read and compare.

    Args:
        config: what to show.

    Returns:
        A JSON-able document: `resolution`, `num_classes`, `rows` and `notes`. A row has `group`, `name`, `network`,
        `params`, `macs`, `top1`, `top5` (0 .. 1), `run`, and `paper` with the same four figures in the same units; None
        where there is no figure.

    Raises:
        InputError: a folder without a retrained network.
    """
    notes: list[str] = []
    rows = [_row(entry, notes) for entry in TABLE]
    for folder in config.runs:
        _add_run(rows, Path(folder), notes)
    order = {group: place for place, group in enumerate((MOBILE, RESNET, OTHER))}
    return {
        "experiment": "table3",
        "resolution": RESOLUTION,
        "num_classes": NUM_CLASSES,
        "rows": sorted(rows, key=lambda row: order[row["group"]]),
        "notes": notes,
    }


def _row(entry: Entry, notes: list[str]) -> dict[str, Any]:
    """A row without a run."""
    row: dict[str, Any] = {"group": entry.group, "name": entry.name, "network": entry.network}
    row |= dict.fromkeys(("params", "macs", "top1", "top5", "run"))
    if entry.network is not None:
        try:
            row |= _cost(entry.network)._asdict()
        except InputError as error:  # a model that this timm does not have
            notes.append(f"{entry.name}: {error}")
    row["paper"] = {
        "params": _times(entry.params_m, 1e6),
        "macs": _times(entry.macs_m, 1e6),
        "top1": _times(entry.top1, 0.01),
        "top5": _times(entry.top5, 0.01),
    }
    if entry.note is not None:
        notes.append(f"{entry.name}: {entry.note}.")
    return row


@functools.cache
def _cost(name: str) -> Cost:
    """Of a published path, or of `timm:NAME`."""
    library, _, model = name.rpartition(":")
    if library:
        return TimmModel(model, NUM_CLASSES, 3, RESOLUTION).cost()
    found = spaces.published(name)
    return found.space.cost(found.space.parse(found.path_text))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else round(value * factor, 4)


def _add_run(rows: list[dict[str, Any]], folder: Path, notes: list[str]) -> None:
    """Put the figures of a run into its row, or into one of its own if that has a run already or there is none."""
    run = RunFolder.open(folder)
    if not run.retrain_config.is_file():
        raise InputError(f"runs: {folder} has no retrained network yet. First: greedynas-fast retrain {folder}.")
    model = read_json(run.retrain_config)
    network = architecture(model, run.retrain_config)
    result = read_json(run.result) if run.result.is_file() else {}
    figures = {"top1": result.get("top1"), "top5": result.get("top5"), "run": str(folder), **network.cost()._asdict()}
    if not result:
        notes.append(f"{folder}: not measured yet; next: greedynas-fast evaluate {folder}.")
    # Results from before there was a choice have no resolution.
    split, pixels = result.get("split", "test"), result.get("resolution", network.resolution)
    if (split, pixels) != ("test", network.resolution):
        notes.append(f"{folder}: measured on the {split} part at {pixels} pixels.")
    name = _name(model)
    row = next((row for row in rows if name in (row["name"], row["network"])), None)
    if (model["num_classes"], network.resolution) != (NUM_CLASSES, RESOLUTION):
        notes.append(f"{folder}: {model['num_classes']} classes at {network.resolution} pixels, another task.")
        row = None
    if row is None:
        paper = dict.fromkeys(("params", "macs", "top1", "top5"))
        rows.append({"group": OTHER, "name": name, "network": name, **figures, "paper": paper})
    elif row["run"] is None:
        row |= figures
    else:
        rows.insert(rows.index(row) + 1, {**row, **figures})


def _name(model: dict[str, Any]) -> str:
    """The name or network of the row that a `config.json` belongs to; a name for a new row if it is in none."""
    if model.get("library"):
        return f"{model['library']}:{model['architecture']}"
    for name in spaces.published_names():
        found = spaces.published(name)
        digits = found.space.format(found.space.parse(found.path_text), "digits")
        if (model["architecture"], model["path"]) == (found.space.name, digits):
            return name
    if model.get("source") == "search" and model["architecture"] in _SEARCHED:
        return _SEARCHED[model["architecture"]]
    return f"{model['architecture']} {model['path']}"


def format_table(result: dict[str, Any]) -> str:
    """The document of `run` as text; no newline at the end.

    Args:
        result: what `run` returned.
    """
    head = ("network", "here", "params M", "paper", "MACs M", "paper", "top-1 %", "paper", "top-5 %", "paper", "run")
    body: list[Sequence[str] | str] = []
    group = None
    for row in result["rows"]:
        if row["group"] != group:
            group = row["group"]
            body.append(group)
        figures = [
            _number(source[key], scale, digits)
            for key, scale, digits in (("params", 1e-6, 1), ("macs", 1e-6, 0), ("top1", 100, 1), ("top5", 100, 1))
            for source in (row, row["paper"])
        ]
        body.append((row["name"], row["network"] or "-", *figures, row["run"] or "-"))
    cells = [head, *(line for line in body if not isinstance(line, str))]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    text = [
        f"Table 3: {result['num_classes']} classes, {result['resolution']} pixels; MACs of convolutions, linear layers",
        "",
        *(line if isinstance(line, str) else _aligned(line, widths) for line in (head, *body)),
    ]
    return "\n".join([*text, "", *(f"- {note}" for note in result["notes"])]).rstrip()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = (0, 1, len(cells) - 1)
    padded = (
        cell.ljust(width) if place in left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join(padded).rstrip()


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
