"""What a run folder holds, read without trust: any file may be absent, torn or odd, and the rest is still shown.

The report is made from these files alone; nothing here writes, and nothing needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.presets import parse_yaml

LARGEST = (
    1e100  # numbers beyond it are taken as missing: nothing that a run logs is so large, and no axis could show it
)

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """The newest `filter/update-*.npz`: cosine similarities of operation embeddings, and the operations left."""

    update: str
    matrices: npt.NDArray[np.float32]  # [L, N, N]
    allowed: npt.NDArray[np.bool_]  # [L, N]


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report shows.

    Attributes:
        folder: the run folder.
        config: `config.yaml` as a mapping ({} if absent or unreadable); `config_text` is its text.
        rows: the rows of `metrics.jsonl`, of which the last counts where (stage, kind, step) is repeated.
        search: the rows of `search.jsonl`, one a path.
        best: `best.json`; result: `result.json`; network: `retrain/config.json`.
        similarity: the newest operation similarities, if any.
        commands: the lines of `commands.txt`.
        problems: plain sentences about files and lines that could not be used.
    """

    folder: Path
    config: Row = field(default_factory=dict)
    config_text: str = ""
    rows: tuple[Row, ...] = ()
    search: tuple[Row, ...] = ()
    best: Row = field(default_factory=dict)
    result: Row = field(default_factory=dict)
    network: Row = field(default_factory=dict)
    similarity: Similarity | None = None
    commands: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def select(self, stage: str, *kinds: str) -> list[Row]:
        """The rows of a stage and of some kinds, in order of step."""
        found = [r for r in self.rows if r.get("stage") == stage and r.get("kind") in kinds]
        return sorted(found, key=lambda row: number(row, "step"))


def number(row: Row, key: str) -> float:
    """The value as a float; NaN where it is absent, null, not a number or not finite."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        return math.nan
    return float(value)


def column(rows: Iterable[Row], key: str) -> Floats:
    """`number` of each row, float64 [n]."""
    return np.array([number(row, key) for row in rows], dtype=np.float64)


def text_of(value: object) -> str:
    """A value as text; "" for None and for containers."""
    return "" if value is None or isinstance(value, dict | list) else str(value)


def setting(config: Row, dotted: str) -> Any:
    """`config["a"]["b"]` for "a.b"; None if any part is absent."""
    value: Any = config
    for key in dotted.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def read_run(folder: Path) -> RunRecord:
    """Reads all that is there.

    Args:
        folder: the run folder; it may be incomplete.

    Returns:
        The record; what could not be used is named in `problems`.
    """
    problems: list[str] = []
    config, config_text = _read_yaml(folder / "config.yaml", problems)
    return RunRecord(
        folder=folder,
        config=config,
        config_text=config_text,
        rows=_last_of_each(_read_lines(folder / "metrics.jsonl", problems), ("stage", "kind", "step")),
        search=_last_of_each(_read_lines(folder / "search.jsonl", problems), ("index",)),
        best=_read_json(folder / "best.json", problems),
        result=_read_json(folder / "result.json", problems),
        network=_read_json(folder / "retrain" / "config.json", problems),
        similarity=_read_similarity(folder / "filter", problems),
        commands=tuple(line for line in _read_text(folder / "commands.txt", problems).splitlines() if line.strip()),
        problems=tuple(problems),
    )


def _read_text(file: Path, problems: list[str]) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problems.append(f"{file.name} cannot be read: {error.strerror}.")
        return ""


def _read_json(file: Path, problems: list[str]) -> Row:
    text = _read_text(file, problems)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        problems.append(f"{file.parent.name}/{file.name} is not a JSON object.")
        return {}
    return value


def _read_yaml(file: Path, problems: list[str]) -> tuple[Row, str]:
    text = _read_text(file, problems)
    try:
        value = parse_yaml(text, file.name)
    except InputError:
        value = None
    if not isinstance(value, dict):
        problems.append(f"{file.name} is not a YAML mapping.")
        return {}, text
    return value, text


def _read_lines(file: Path, problems: list[str]) -> list[Row]:
    """Rows of a JSON-lines file. A last line that was cut off (a run still going, or killed) is no problem."""
    lines = _read_text(file, problems).split("\n")
    rows, bad = [], 0
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif i < len(lines) - 1:
            bad += 1
    if bad:
        problems.append(f"{file.name}: {bad} line{'s' if bad > 1 else ''} could not be read.")
    return rows


def _last_of_each(rows: list[Row], keys: tuple[str, ...]) -> tuple[Row, ...]:
    """A step that was logged again (the run went on from an older checkpoint) counts once, as logged last."""
    unique: dict[str, Row] = {}
    for i, row in enumerate(rows):
        known = all(key in row for key in keys)
        name = repr([row[key] for key in keys]) if known else f"row {i}"
        unique[name] = row
    return tuple(unique.values())


def _read_similarity(folder: Path, problems: list[str]) -> Similarity | None:
    """The newest update whose arrays are whole and fit each other."""
    for file in sorted(folder.glob("update-*.npz"), reverse=True):
        try:
            with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
                matrices = np.asarray(arrays["similarity"], dtype=np.float32)
                allowed = np.asarray(arrays["allowed"], dtype=np.bool_)
        except Exception as error:  # numpy and zipfile raise half a dozen kinds for a torn file
            problems.append(f"filter/{file.name} cannot be read ({type(error).__name__}).")
            continue
        layers, count = allowed.shape if allowed.ndim == 2 else (0, 0)
        if layers and matrices.shape == (layers, count, count):
            return Similarity(file.stem.replace("-", " "), matrices, allowed)
        problems.append(f"filter/{file.name} has arrays of unexpected shapes.")
    return None
