"""Several paths of the supernet on the same images, a layer at a time, with gradients: for strictly fair training.

As `scoring.layers`, for devices on which a launch takes longer than the work of a path's small layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from greedynas_fast.ops.ragged import ragged
from greedynas_fast.supernet.bank import ParameterBank
from greedynas_fast.supernet.masked_layer import run_masked_layer
from greedynas_fast.supernet.supernet import Supernet


def features_together(
    net: Supernet, images: Tensor, paths: NDArray[np.integer], bank: ParameterBank | None = None
) -> list[Tensor]:
    """What the head takes, of each path. The stem runs once; each path is a group of op-masked layers.

    Args:
        net: the supernet. Batch norms of its layers normalise by the statistics of a path's images in this process,
            also where they are synchronised; their running statistics are left alone.
        images: [B, C, H, W].
        paths: operation indices [n, L], n > 0.
        bank: holds the parameters: `run_masked_layer` then adds to its gradients in place, past autograd's hooks.

    Returns:
        [B, C', H', W'] a path.

    Raises:
        InputError: a path that the space does not have, or a batch too small to normalise.
    """
    choices = np.array([net.choices(path) for path in paths])
    x = net.stem(images)
    layout = ragged([len(x)] * len(choices), x.shape[2], x.shape[3], [x.shape[1]] * len(choices))
    flat = layout.pack([x] * len(choices))
    for operations, chosen in zip(cast("Iterable[nn.ModuleList]", net.layers), choices.T.tolist(), strict=True):
        flat, layout = run_masked_layer(list(operations), chosen, flat, layout, bank)
    return layout.unpack(flat)
