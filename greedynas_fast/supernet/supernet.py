"""The supernet: one module a (layer, operation), one of which a layer runs at a time (single-path one-shot)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from greedynas_fast.nn import Head, Stem, build_operation, initialise
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet.choices import Path, choices
from greedynas_fast.supernet.network import Network


class Supernet(nn.Module):
    """All operations of a search space, sharing stem and head.

    State-dict keys: `stem.*`, `layers.<layer>.<op>.*`, `head.*`.

    Attributes:
        space: the search space.
        stem: before the first searchable layer.
        layers: [layer][op] modules.
        head: after the last searchable layer.

    Args:
        space: the search space.
        seed: of the starting weights, which depend on nothing else. The global generators stay as they are.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self._num_ops = space.num_ops
        # On the meta device PyTorch's own initialisation costs nothing and draws nothing from the global generators.
        with torch.device("meta"):
            self.stem = Stem(space.stem, space.in_channels)
            self.layers = nn.ModuleList(
                nn.ModuleList(
                    build_operation(op, layer.in_channels, layer.out_channels, layer.stride) for op in layer.ops
                )
                for layer in space.layers
            )
            self.head = Head(space.head, space.num_classes)
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))

    def choices(self, path: Path) -> tuple[int, ...]:
        """The operation index of every layer as plain integers.

        Raises:
            InputError: a path that the space does not have.
        """
        return choices(path, self._num_ops)

    def operations(self, path: Path) -> list[nn.Module]:
        """The modules that `path` runs between stem and head, one a layer."""
        layers = cast("Iterable[nn.ModuleList]", self.layers)
        return [operations[op] for operations, op in zip(layers, self.choices(path), strict=True)]

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """Run one path.

        Args:
            x: images [N, C, H, W].
            path: [L] operation indices.

        Returns:
            Logits [N, num_classes].

        Raises:
            InputError: a path that the space does not have.
        """
        operations = self.operations(path)
        x = self.stem(x)
        for operation in operations:
            x = operation(x)
        logits: Tensor = self.head(x)
        return logits


def extract(net: Supernet, path: Path) -> Network:
    """The sub-network of one path, with its own copies of the weights and batch-norm statistics.

    Args:
        net: the supernet; not changed.
        path: [L] operation indices.

    Returns:
        A network on the same device and in the same mode, whose outputs equal `net(x, path)` bit for bit.

    Raises:
        InputError: a path that the space does not have.
    """
    stem, operations, head = copy.deepcopy((net.stem, net.operations(path), net.head))
    network = Network.from_parts(net.space, path, stem=stem, blocks=operations, head=head)
    network.training = net.training
    return network
