"""NAS-Bench-Macro as arrays: 8 layers of 3 operations, trained 6,561 times on CIFAR-10.

The file `nas-bench-macro_cifar10.json` comes from the public repository xiusu/NAS-Bench-Macro; the package reads it
from a path that the user gives and does not ship it.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError

NUM_OPS = (3,) * 8
NUM_PATHS = 3**8


@dataclass(frozen=True)
class MacroBenchmark:
    """The whole table, in the order of the keys 00000000 .. 22222222.

    Attributes:
        paths: uint8 [6561, 8].
        accuracy: float64 [6561], mean test accuracy of three seeds in percent.
        params: int64 [6561], number of parameters.
        macs: int64 [6561], multiply-accumulates (the file calls them flops).
    """

    paths: npt.NDArray[np.uint8]
    accuracy: npt.NDArray[np.float64]
    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]


def load_benchmark(file: str | Path) -> MacroBenchmark:
    """Read and check the benchmark.

    Args:
        file: path of `nas-bench-macro_cifar10.json`.

    Returns:
        The table.

    Raises:
        InputError: if the file cannot be read, is not JSON, or lacks a key or a value.
    """
    entries = _read(Path(file))
    keys = ["".join(digits) for digits in itertools.product("012", repeat=len(NUM_OPS))]
    if len(entries) != NUM_PATHS or any(key not in entries for key in keys):
        missing = sum(key not in entries for key in keys)
        raise InputError(
            f"bench: {file} must hold the {NUM_PATHS:,} keys 00000000 .. 22222222 of NAS-Bench-Macro; "
            f"it has {len(entries):,} keys and lacks {missing:,} of these"
        )
    columns = {
        name: [_number(file, key, entries[key], name) for key in keys] for name in ("mean_acc", "params", "flops")
    }
    return MacroBenchmark(
        paths=np.array([[int(digit) for digit in key] for key in keys], dtype=np.uint8),
        accuracy=np.array(columns["mean_acc"], dtype=np.float64),
        params=np.array(columns["params"], dtype=np.int64),
        macs=np.array(columns["flops"], dtype=np.int64),
    )


def _read(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"bench: {file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"bench: {file} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"bench: {file} must hold a JSON object of paths, got {type(content).__name__}")
    return content


def _number(file: str | Path, key: str, entry: Any, name: str) -> float:
    """One finite number of one entry."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"bench: {file} has no number {name!r} for path {key}, got {value!r}")
    return value


def good_paths(accuracy: npt.NDArray[np.float64], share: float = 0.1) -> npt.NDArray[np.bool_]:
    """The best `share` of the paths (Sec. 5.3: 10 % good, 90 % weak); equal accuracies in the order of the keys.

    Args:
        accuracy: float64 [n].
        share: 0 < share < 1.

    Returns:
        bool [n] with round(share * n) entries set.
    """
    good = np.zeros(len(accuracy), dtype=np.bool_)
    good[np.argsort(-accuracy, kind="stable")[: round(share * len(accuracy))]] = True
    return good
