"""Cells over worker processes of one thread each, so that results do not depend on the number of workers."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .table4_cell import Cell, run_cell


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_cells(cells: Sequence[Cell], workers: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every cell.

    Args:
        cells: what to run.
        workers: processes; with one, everything runs in this process.
        progress: receives a line after each cell.

    Returns:
        One record a cell, in the order of `cells`.
    """
    # Long cells first, so that no worker is left alone with one at the end.
    order = sorted(range(len(cells)), key=lambda index: -_cost(cells[index]))
    records: dict[int, dict[str, Any]] = {}
    for index, record in _results(cells, order, workers):
        records[index] = record
        progress(_line(len(records), len(cells), record))
    return [records[index] for index in range(len(cells))]


def _results(cells: Sequence[Cell], order: Sequence[int], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records as they come."""
    jobs = [(index, cells[index]) for index in order]
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(_run, jobs)
        finally:
            torch.set_num_threads(threads)
        return
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_run, jobs)


def _run(job: tuple[int, Cell]) -> tuple[int, dict[str, Any]]:
    """One cell with its place."""
    return job[0], run_cell(job[1])


def _cost(cell: Cell) -> float:
    """Rough number of paths that the training handles."""
    per_step = {"vpu": 3.0, "nnpu": 2.0, "upu": 2.0, "pn": 2.0, "rank": 1.0}[cell.config.loss]
    return per_step * cell.config.steps * cell.config.batch_size * (0.5 + cell.fraction)


def _line(done: int, total: int, record: dict[str, Any]) -> str:
    """One line of progress."""
    return (
        f"[{done}/{total}] {record['loss']} {100 * record['fraction']:g} % seed {record['seed']}: "
        f"precision {100 * record['precision']:.2f}, recall {100 * record['recall']:.2f}, "
        f"AUROC {record['auroc']:.4f} ({record['elapsed_s']:.0f} s)"
    )
