"""Results for programs (one JSON document) and for people (short lines)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greedynas_fast.dataclass_io import to_mapping


def to_json(result: object) -> str:
    """A result as one JSON document; NaN and infinities become null, numpy values plain ones."""
    return json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False)


def lines(result: Mapping[str, Any]) -> str:
    """A stage's result for people: one line a value, and the next command as the last."""
    names = [name for name in result if name != "next"]
    width = max(map(len, names), default=0)
    text = [f"{name.replace('_', ' '):{width}}  {_short(result[name])}" for name in names]
    if result.get("next"):
        text += ["", f"Next: {result['next']}"]
    return "\n".join(text)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Left-aligned columns; numbers are right-aligned."""
    cells = [list(header), *([_short(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    right = [bool(rows) and all(isinstance(row[column], (int, float)) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def _short(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_short, value)) if len(value) <= 32 else f"{len(value)} entries"
    return str(value)


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        value = to_mapping(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
