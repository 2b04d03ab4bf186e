"""One cell of Table 4: train a filter on a share of NAS-Bench-Macro and judge it on the whole table."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast import spaces
from greedynas_fast.filter import FilterConfig, auroc, find_threshold, precision_recall, train_filter

from .benchmark import NUM_OPS, MacroBenchmark, good_paths, load_benchmark

GOOD_SHARE = 0.1
# A tie of accuracies at the border between good and weak is cut by moving the weak ones down by this many points, far
# less than the step between two accuracies (0.0033 points).
_TIE_BREAK = 1e-9
_SAMPLE_STREAM = 4


@dataclass(frozen=True)
class Cell:
    """What one worker needs to know.

    Attributes:
        bench: path of the benchmark file.
        fraction: share of the table in the training set, 0..1.
        seed: fixes the training set (the same for every loss) and the training.
        config: how the filter is trained.
        canonical: whether paths that are one network are written alike before anything else.
    """

    bench: str
    fraction: float
    seed: int
    config: FilterConfig
    canonical: bool


@functools.cache
def _load(file: str) -> tuple[MacroBenchmark, npt.NDArray[np.uint8]]:
    """The table and the normal form of its paths, read once a process."""
    bench = load_benchmark(file)
    return bench, spaces.get("nas-bench-macro").canonical(bench.paths)


def draw_sample(size: int, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Rows of the training set, uniform without replacement, in ascending order.

    Args:
        size: number of rows of the table.
        fraction: share of it, 0..1.
        seed: the sample is a function of it and of the fraction.

    Returns:
        int64 [round(fraction * size)].
    """
    count = round(fraction * size)
    rng = np.random.Generator(np.random.Philox(key=[seed, _SAMPLE_STREAM], counter=[0, 0, count, 0]))
    return np.sort(rng.permutation(size)[:count])


def run_cell(cell: Cell) -> dict[str, Any]:
    """Train and judge one filter.

    Labels outside the training set are read only after the training is over.

    Args:
        cell: what to do.

    Returns:
        A JSON-able record; `positive` is the weak class, and `unseen` judges only paths whose network is not in the
        training set under any spelling (None where every network is).
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    bench, normal = _load(cell.bench)
    paths = normal if cell.canonical else bench.paths
    weak = ~good_paths(bench.accuracy, GOOD_SHARE)
    sample = draw_sample(len(paths), cell.fraction, cell.seed)
    num_weak = int(weak[sample].sum())
    # The labels of the table decide who is in P, not the worst 90 % of the sample (Sec. 5.3: ground-truth labels).
    trained = train_filter(
        NUM_OPS,
        paths[sample],
        _TIE_BREAK * weak[sample] - bench.accuracy[sample],
        paths,
        min(num_weak, len(sample) - 0.5) / len(sample),
        cell.config,
        cell.seed,
    )
    log_weak = trained.log_prob_weak(paths)
    predicted = log_weak > np.float32(find_threshold(log_weak, 1.0 - GOOD_SHARE, cell.config.threshold_rule))
    unseen = ~np.isin(_row_keys(normal), _row_keys(normal[sample]))
    return {
        "loss": cell.config.loss,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "num_scored": len(sample),
        "num_weak": num_weak,
        **_judge(log_weak, predicted, weak),
        "unseen": _judge(log_weak[unseen], predicted[unseen], weak[unseen]) if unseen.any() else None,
        "spread": trained.report.spread,
        "steps": cell.config.steps,
        "batch_size": cell.config.batch_size,
        "elapsed_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - started_cpu,
    }


def _row_keys(paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """One integer a path."""
    result: npt.NDArray[np.int64] = paths.astype(np.int64) @ (3 ** np.arange(paths.shape[1]))
    return result


def _judge(
    log_weak: npt.NDArray[np.float32], predicted: npt.NDArray[np.bool_], weak: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Both classes and the area under the curve; None where a number does not exist."""
    of_weak, of_good = precision_recall(predicted, weak), precision_recall(~predicted, ~weak)
    values = {
        "precision": of_weak.precision,
        "recall": of_weak.recall,
        "auroc": auroc(log_weak, weak),
        "good_precision": of_good.precision,
        "good_recall": of_good.recall,
    }
    record: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"num_paths": len(weak), "num_good": int(np.count_nonzero(~weak)), **record}
