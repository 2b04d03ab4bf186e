"""Launches that join the partial results of tiles of rows: `greedynas_fast.kernels.reduction`.

Units are what gets one result: the groups, or the samples of the groups. The partial results of a unit lie one behind
the other in the workspace, [partial results, parts, stride].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import triton_kernels

FAN = 128
"""Partial results that one program joins: with BLOCK channels they just fit the registers of 128 threads."""
BLOCK = 32


@dataclass(frozen=True)
class Join:
    """One launch.

    Attributes:
        jobs: int64 [results, 4] as the kernels read it.
        counts: values behind each partial result that it reads, float32.
    """

    jobs: Tensor
    counts: Tensor


def plan(
    counts: Sequence[npt.NDArray[np.int64]],
    widths: Sequence[int],
    offsets: Sequence[int],
    device: torch.device,
    fan: int = FAN,
) -> tuple[Join, ...]:
    """The launches that leave one result a unit.

    Args:
        counts: values behind each partial result of each unit; a unit without any gets no result.
        widths: channels of each unit.
        offsets: where the result of each unit goes in the last launch.
        device: of the kernels.
        fan: partial results to join at a time, a power of two.
    """
    used = [unit for unit, values in enumerate(counts) if len(values)]
    parts = np.array([len(counts[unit]) for unit in used], dtype=np.int64)
    width, offset = np.array(widths, dtype=np.int64)[used], np.array(offsets, dtype=np.int64)[used]
    values = np.concatenate([counts[unit] for unit in used])
    joins: list[Join] = []
    last = False
    while not last:
        segments = -(-parts // fan)
        last = bool((segments == 1).all())
        unit = np.repeat(np.arange(len(used)), segments)
        inside = fan * (np.arange(segments.sum()) - np.repeat(np.cumsum(segments) - segments, segments))
        first = np.repeat(np.cumsum(parts) - parts, segments) + inside
        number = np.minimum(fan, parts[unit] - inside)
        jobs = np.stack([width[unit], first, number, offset[unit] if last else np.arange(len(unit))], axis=1)
        joins.append(Join(torch.from_numpy(jobs).to(device), torch.from_numpy(values.astype(np.float32)).to(device)))
        values, parts = np.add.reduceat(values, first), segments
    return tuple(joins)


def join(
    partials: Tensor,
    joins: Sequence[Join],
    result: Tensor,
    part_stride: int,
    kind: Literal["sum", "moments"],
    fan: int = FAN,
) -> None:
    """Join partial results into `result`: part p of a unit's channel c at its offset + p * part_stride + c.

    Args:
        partials: float32 [partial results, parts, stride]; for moments mean and sum of squared differences.
        joins: of `plan`.
        result: float32, contiguous; for moments mean and biased variance.
        part_stride: elements from part to part of the result.
        kind: what is joined.
        fan: as the plan has it.
    """
    kernels = triton_kernels.load("reduction")
    _, parts, stride = partials.shape
    for step in joins:
        last = step is joins[-1]
        to = result if last else partials.new_empty(len(step.jobs), parts, stride)
        strides = (1, part_stride) if last else (parts * stride, stride)
        grid = (len(step.jobs), -(-stride // BLOCK))
        if kind == "sum":
            kernels.sum_kernel[grid](partials, to, step.jobs, stride, *strides, PARTS=parts, FAN=fan, BLOCK=BLOCK)
        else:
            kernels.moments_kernel[grid](
                partials, step.counts, to, step.jobs, stride, *strides, LAST=last, FAN=fan, BLOCK=BLOCK
            )
        partials = to
