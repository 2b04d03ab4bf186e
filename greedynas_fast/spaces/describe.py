"""A search space as one plain dictionary, for tables and JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.spaces import cost as costing

if TYPE_CHECKING:
    from greedynas_fast.spaces.space import SearchSpace


def describe_space(space: SearchSpace, resolution: int | None = None) -> dict[str, Any]:
    """Sizes, layers and the range of costs of a space.

    Args:
        space: the space.
        resolution: pixels a side that MACs are for; None: the space's own.

    Returns:
        Plain JSON values. `size` is the exact number of paths, an integer of any length. `params` and `macs` hold the
        exact `min` and `max` over all networks and the `mean` over uniformly drawn ones. `layers` has, for each layer,
        its shape, the pixels a side that it gets (`size`), its operations and their costs.
    """
    pixels = space.resolution if resolution is None else resolution
    params, macs = space.op_costs(pixels)
    fixed = space.fixed_cost(pixels)
    return {
        "name": space.name,
        "in_channels": space.in_channels,
        "resolution": pixels,
        "num_classes": space.num_classes,
        "num_layers": space.num_layers,
        "max_ops": space.max_ops,
        "size": space.size,
        "supernet_params": space.supernet_params(),
        "fixed_params": fixed.params,
        "fixed_macs": fixed.macs,
        "params": _range(params, space.num_ops, fixed.params),
        "macs": _range(macs, space.num_ops, fixed.macs),
        "stem": {**dataclasses.asdict(space.stem), "blocks": [block.ops[0].name for block in space.stem.blocks]},
        "layers": _layers(space, pixels, params, macs),
        "head": dataclasses.asdict(space.head),
        "fingerprint": space.fingerprint(),
    }


def _range(values: npt.NDArray[np.int64], counts: tuple[int, ...], fixed: int) -> dict[str, int | float]:
    """Least, greatest and mean total over all paths; layers choose independently, so layer by layer."""
    rows = [row[:count] for row, count in zip(values, counts, strict=True)]
    return {
        "min": fixed + sum(int(row.min()) for row in rows),
        "max": fixed + sum(int(row.max()) for row in rows),
        "mean": fixed + sum(float(row.mean()) for row in rows),
    }


def _layers(
    space: SearchSpace, resolution: int, params: npt.NDArray[np.int64], macs: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One row a layer."""
    size = costing.stem_output_size(space.stem, resolution)
    rows = []
    for layer, names in zip(space.layers, space.ops, strict=True):
        rows.append(
            {
                "index": layer.index,
                "stage": layer.stage,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "stride": layer.stride,
                "size": size,
                "ops": list(names),
                "params": params[layer.index, : len(names)].tolist(),
                "macs": macs[layer.index, : len(names)].tolist(),
            }
        )
        size = costing.output_size(size, layer.stride)
    return rows
