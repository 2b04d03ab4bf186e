"""The prefix tree of paths walked layer by layer: all that the paths have chosen in a layer runs together.

Meant for devices on which a launch takes longer than the work of a path's small layer: an op-masked layer
(`supernet.masked_layer`) is one launch for the images of many paths, each group with its own operation and statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from greedynas_fast.ops.ragged import Ragged, ragged
from greedynas_fast.supernet.masked_layer import run_masked_layer
from greedynas_fast.supernet.scoring.walk import PrefixTree

# What a path takes in the first layers, where images are largest, in units of the stem's result: a layer's input, the
# expanded tensors on both sides of its depthwise convolution, and its result.
STEM_RESULTS_PER_PATH = 8


def paths_at_once(x: Tensor, memory: int) -> int:
    """How many paths may go through the layers together, at least one; x is the stem's result."""
    return max(1, memory // (STEM_RESULTS_PER_PATH * x.numel() * x.element_size()))


def walk_layers(
    tree: PrefixTree,
    x: Tensor,
    layers: Sequence[Sequence[nn.Module]],
    head: nn.Module,
    poll: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run all paths, those of a shared prefix once, each node of a layer as a group of an op-masked layer.

    Args:
        tree: of paths with the stem as first and the head as last level.
        x: the stem's result, [n, C, H, W].
        layers: [layer][op] modules.
        head: from the last layer to logits; a path at a time.
        poll: called before each layer and each head.

    Yields:
        (path, logits [n, classes]), path by path.
    """
    layout = ragged([len(x)], x.shape[2], x.shape[3], [x.shape[1]])
    flat, parents = layout.pack([x]), np.zeros(1, dtype=np.int64)
    for level, operations in enumerate(layers, 1):
        _call(poll)
        nodes = np.unique(tree.node[:, level])
        if len(nodes) > len(parents):
            places = np.searchsorted(parents, tree.node[nodes, level - 1])
            flat, layout = _taken(flat, layout, places.tolist())
        flat, layout = run_masked_layer(operations, tree.paths[nodes, level].tolist(), flat, layout)
        parents = nodes
    for group, path in enumerate(parents.tolist()):  # distinct paths have parted by now
        _call(poll)
        yield path, head(layout.view(flat, group))


def _taken(flat: Tensor, layout: Ragged, places: list[int]) -> tuple[Tensor, Ragged]:
    """The groups at these places, one after the other; all groups are of one shape."""
    rows = flat.view(layout.groups, -1)[places]
    taken = ragged([layout.samples[0]] * len(places), layout.height, layout.width, [layout.widths[0]] * len(places))
    return rows.reshape(-1), taken


def _call(poll: Callable[[], None] | None) -> None:
    if poll is not None:
        poll()
