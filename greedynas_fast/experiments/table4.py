"""Table 4: the path filter on NAS-Bench-Macro with ground-truth labels (Sec. 5.3).

10 % of the paths are good and 90 % weak by their accuracy; filters are trained on 1, 10, 50 and 100 % of the table and
judged on all of it. "Positive" is the weak class. Beside the paper's precision and recall stand the area under the ROC
curve, the numbers of the good class, the trivial filter that calls everything weak, and the paths whose network was not
in the training set.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from greedynas_fast.errors import InputError
from greedynas_fast.filter import FilterConfig
from greedynas_fast.filter.training import LossName

from .benchmark import NUM_PATHS, load_benchmark
from .parallel import available_cores, map_cells
from .table4_cell import GOOD_SHARE, Cell
from .table4_text import format_table

__all__ = ["BudgetName", "Table4Config", "format_table", "run"]

BudgetName: TypeAlias = Literal["quick", "trial", "paper"]

# Steps and batch of each budget. In `trial` the cheap supervised losses take more steps than the PU losses, whose steps
# cost about three times as much.
_BUDGETS: dict[str, dict[str, Any]] = {
    "quick": {"steps": 60, "batch_size": 128},
    "trial": {"steps": 400, "batch_size": 256},
    "paper": {"steps": 3000, "batch_size": 1024},
}
_TRIAL_STEPS: dict[str, int] = {}

# Precision and recall in percent at 1, 10, 50 and 100 % of the data.
PAPER: dict[str, dict[str, list[float]]] = {
    "PU": {"precision": [97.21, 98.37, 98.30, 98.81], "recall": [97.08, 98.34, 98.19, 98.62]},
    "PN": {"precision": [79.52, 78.74, 88.45, 85.55], "recall": [85.82, 93.14, 85.21, 90.24]},
}
PAPER_FRACTIONS = (0.01, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Table4Config:
    """What to run.

    Attributes:
        bench: path of `nas-bench-macro_cifar10.json`.
        budget: `quick` (a look, minutes), `trial` (the default) or `paper` (3,000 steps of 1,024).
        seeds: number of seeds; seed s fixes the training set and the training.
        first_seed: the first of them.
        losses: which rows.
        fractions: which columns, shares of the table.
        canonical: write paths that are one network alike (an invariance of the space; not in the paper).
        workers: processes; None takes the cores that this process may use. Results do not depend on it.
    """

    bench: str
    budget: BudgetName = "trial"
    seeds: int = 3
    first_seed: int = 0
    losses: tuple[LossName, ...] = ("vpu", "nnpu", "upu", "pn", "rank")
    fractions: tuple[float, ...] = PAPER_FRACTIONS
    canonical: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if self.budget not in get_args(BudgetName):
            raise InputError(f"budget must be one of {', '.join(get_args(BudgetName))}, got {self.budget!r}")
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}")
        if not 0 <= self.first_seed < 2**64 - self.seeds:
            raise InputError(f"first_seed must be at least 0 and below 2**64, got {self.first_seed}")
        if not self.losses or any(loss not in get_args(LossName) for loss in self.losses):
            raise InputError(f"losses must be among {', '.join(get_args(LossName))}, got {self.losses}")
        if not self.fractions or any(not 2 / NUM_PATHS <= fraction <= 1.0 for fraction in self.fractions):
            raise InputError(f"fractions must be shares of the table up to 1, got {self.fractions}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")


def filter_config(loss: LossName, budget: BudgetName) -> FilterConfig:
    """Settings of the filter for one row.

    Args:
        loss: the row.
        budget: how much training.

    Returns:
        The same settings for every share of the data.
    """
    values = dict(_BUDGETS[budget])
    if budget == "trial":
        values["steps"] = _TRIAL_STEPS.get(loss, values["steps"])
    return FilterConfig(loss=loss, schedule="cosine", holdout=0.0, **values)


def run(config: Table4Config, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train and judge all filters of the table.

    Args:
        config: what to run.
        progress: receives one line after each trained filter.

    Returns:
        A JSON-able document: `settings`, `baseline`, `paper`, `rows` (mean and standard deviation over seeds of each
        loss and fraction), `cells` (every single filter), `workers`, `cpu_s` and `elapsed_s`.

    Raises:
        InputError: if the benchmark file cannot be used.
    """
    started = time.perf_counter()
    load_benchmark(config.bench)
    cells = [
        Cell(config.bench, fraction, config.first_seed + offset, filter_config(loss, config.budget), config.canonical)
        for loss in config.losses
        for fraction in config.fractions
        for offset in range(config.seeds)
    ]
    workers = min(len(cells), config.workers or available_cores())
    records = map_cells(cells, workers, progress)
    return {
        "experiment": "table4",
        "settings": _settings(config),
        "baseline": _baseline(),
        "paper": {"fractions": list(PAPER_FRACTIONS), **PAPER},
        "rows": [
            _row(loss, fraction, [r for r in records if (r["loss"], r["fraction"]) == (loss, fraction)])
            for loss in config.losses
            for fraction in config.fractions
        ],
        "cells": records,
        "workers": workers,
        "cpu_s": sum(record["cpu_s"] for record in records),
        "elapsed_s": time.perf_counter() - started,
    }


def _settings(config: Table4Config) -> dict[str, Any]:
    """Everything that decides the numbers, and where it departs from the paper."""
    filters = {loss: dataclasses.asdict(filter_config(loss, config.budget)) for loss in config.losses}
    differences = [
        "weight decay 0 instead of 5e-3, with which Phi collapses to a constant",
        "cosine learning-rate schedule to zero; the paper names none",
        f"initial embeddings have standard deviation {FilterConfig().embedding_std}; the paper says random",
        "U is the whole table without labels instead of 10 q m random paths",
        "the threshold is the quantile of log Phi over U that accepts 10 %; the paper names none",
    ]
    steps = {loss: f"{values['steps']} x {values['batch_size']}" for loss, values in filters.items()}
    if config.budget != "paper":
        differences.append(f"steps x batch {steps} instead of 3000 x 1024")
    if "rank" in config.losses:
        differences.append("the loss `rank` is not in the paper; it also uses the order of the training set")
    if config.canonical:
        differences.append("paths that are one network are written alike")
    return {
        "bench": config.bench,
        "budget": config.budget,
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "fractions": list(config.fractions),
        "canonical": config.canonical,
        "good_share": GOOD_SHARE,
        "steps": steps,
        "filters": filters,
        "differences_from_paper": differences,
    }


def _baseline() -> dict[str, Any]:
    """The filter that calls every path weak."""
    good = round(GOOD_SHARE * NUM_PATHS)
    return {
        "name": "everything is weak",
        "precision": 1.0 - good / NUM_PATHS,
        "recall": 1.0,
        "auroc": 0.5,
        "good_precision": None,
        "good_recall": 0.0,
    }


def _row(loss: str, fraction: float, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and population standard deviation over the seeds."""
    unseen = [record["unseen"] for record in records if record["unseen"] is not None]
    return {
        "loss": loss,
        "fraction": fraction,
        "seeds": len(records),
        "num_scored": records[0]["num_scored"],
        **_statistics(records),
        "unseen": {**_statistics(unseen), "num_paths": _mean_std([u["num_paths"] for u in unseen])} if unseen else None,
        "spread": _mean_std([record["spread"] for record in records]),
        "elapsed_s": _mean_std([record["elapsed_s"] for record in records]),
        "cpu_s": _mean_std([record["cpu_s"] for record in records]),
    }


def _statistics(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each measure."""
    names = ("precision", "recall", "auroc", "good_precision", "good_recall")
    return {name: _mean_std([record[name] for record in records]) for name in names}


def _mean_std(values: list[float | None]) -> dict[str, float] | None:
    """Of the values that exist."""
    known = [value for value in values if value is not None]
    return {"mean": float(np.mean(known)), "std": float(np.std(known))} if known else None
