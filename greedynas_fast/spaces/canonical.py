"""Normal form of paths that describe the same network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from greedynas_fast.spaces.specs import IdentitySpec, LayerSpec


def canonical_paths(layers: Sequence[LayerSpec], paths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Move identities that do nothing to the end of their run; keep the other operations in their order.

    A run is a maximal stretch of neighbouring layers of one stage with stride 1, equal channels, and the same set of
    operations. Inside it every operation computes the same function of the same shape wherever it stands and an
    identity computes nothing, so all orders that keep the sequence of the others are one network. Operations are
    matched by specification, since layers may list them in different orders.

    Args:
        layers: the L layers of the space.
        paths: valid paths, uint8 [n, L].

    Returns:
        uint8 [n, L]. An operation mask that removed operations from some layers only may not hold for it.
    """
    result = paths.copy()
    for run in _runs(layers):
        reference = layers[run[0]].ops
        codes = np.empty((len(paths), len(run)), dtype=np.uint8)  # [n, R], indices into the first layer's operations
        for column, layer in enumerate(run):
            to_code = np.array([reference.index(spec) for spec in layers[layer].ops], dtype=np.uint8)
            codes[:, column] = to_code[paths[:, layer]]
        is_identity = np.array([isinstance(spec, IdentitySpec) for spec in reference])
        order = np.argsort(is_identity[codes], axis=1, kind="stable")
        codes = np.take_along_axis(codes, order, axis=1)
        for column, layer in enumerate(run):
            from_code = np.array([layers[layer].ops.index(spec) for spec in reference], dtype=np.uint8)
            result[:, layer] = from_code[codes[:, column]]
    return result


def _runs(layers: Sequence[LayerSpec]) -> list[list[int]]:
    """Layer indices of each run of two or more layers among which identities can move."""
    if not layers:
        return []
    runs = [[0]]
    for before, (left, right) in enumerate(pairwise(layers)):
        joined = (
            left.stage == right.stage and _keeps_shape(left) and _keeps_shape(right) and set(left.ops) == set(right.ops)
        )
        if joined:
            runs[-1].append(before + 1)
        else:
            runs.append([before + 1])
    return [run for run in runs if len(run) > 1]


def _keeps_shape(layer: LayerSpec) -> bool:
    """Whether an identity does nothing here."""
    return layer.stride == 1 and layer.in_channels == layer.out_channels
