"""Evaluated paths, and which of them are best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Record:
    """One evaluated path.

    Attributes:
        index: its place in the order of asking, from 0.
        generation: the generation that asked for it, from 0.
        path: uint8 [L].
        accuracy: as it was told.
        macs: multiply-accumulates at the space's resolution.
    """

    index: int
    generation: int
    path: npt.NDArray[np.uint8]
    accuracy: float
    macs: int


def rank_key(record: Record) -> tuple[float, int, int]:
    """Sorts better records first: higher accuracy, then fewer MACs, then asked for earlier."""
    return (-record.accuracy, record.macs, record.index)


def pareto(records: Sequence[Record]) -> list[Record]:
    """Records that no other beats in accuracy (up) and MACs (down), fewest MACs first; of equal ones, the earliest."""
    front: list[Record] = []
    for record in sorted(records, key=lambda record: (record.macs, -record.accuracy, record.index)):
        if not front or record.accuracy > front[-1].accuracy:
            front.append(record)
    return front
