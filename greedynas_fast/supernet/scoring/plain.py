"""One path after the other: what `score_paths` must equal, in tests and measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greedynas_fast.supernet.batchnorm import batch_statistics, evaluation_mode, recalibrate
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.scoring.scores import PathScores, Tally, calibration_batches, equal_shares
from greedynas_fast.supernet.supernet import Supernet, extract


@torch.no_grad()
def score_one_at_a_time(
    net: Supernet,
    paths: Sequence[Path] | NDArray[np.integer] | Tensor,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    bn: Literal["batch", "recalibrate"] = "batch",
    calibration: Iterable[Tensor] | None = None,
) -> PathScores:
    """The scores of `score_paths` from a whole forward pass a path, and for `recalibrate` an extracted network a path.

    Arguments, results and errors are those of `score_paths`.
    """
    shares = equal_shares(images, labels, batch_size, bn)
    batches = calibration_batches([] if calibration is None else list(calibration), bn)
    checked = [net.choices(path) for path in paths]
    tally = Tally(len(checked), images.device)
    with ExitStack() as stack:
        if bn == "batch":
            stack.enter_context(evaluation_mode(net))
            stack.enter_context(batch_statistics(net))
        for row, path in enumerate(checked):
            if bn == "batch":
                for x, y in shares:
                    tally.add(row, net(x, path), y)
            else:
                network = extract(net, path)
                recalibrate(network, batches)
                for x, y in shares:
                    tally.add(row, network(x), y)
    return tally.scores(len(images))
