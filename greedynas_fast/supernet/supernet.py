"""The supernet: one module a (layer, operation), one of which a layer runs at a time (single-path one-shot)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn import Head, Stem, build_operation, initialise, loss_in_turn, materialise, run_in_turn
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet.choices import Path, choices
from greedynas_fast.supernet.network import Network


class Removed(nn.Module):
    """Stands where an operation was that has left the supernet, so that the others keep their indices and keys."""

    def forward(self, x: Tensor) -> Tensor:
        """Cannot run; `Supernet.choices` refuses such a path before it comes to this."""
        raise InputError("supernet: this operation has been removed")

    def _load_from_state_dict(self, *args: Any) -> None:
        """Whatever a state dict holds for the operation is ignored."""


class Supernet(nn.Module):
    """All operations of a search space, sharing stem and head.

    State-dict keys: `stem.*`, `layers.<layer>.<op>.*`, `head.*`. Operations can leave (`keep`): they have no keys then,
    and what a state dict from before holds for them is ignored. `compaction.load_checkpoint` is for the other way.

    Attributes:
        space: the search space.
        stem: before the first searchable layer.
        layers: [layer][op] modules; `Removed` where an operation has left.
        head: after the last searchable layer.

    Args:
        space: the search space.
        seed: of the starting weights, which depend on nothing else. The global generators stay as they are.
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self._num_ops = space.num_ops
        self._removed: frozenset[tuple[int, int]] = frozenset()
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
        materialise(self)
        initialise(self, torch.Generator().manual_seed(seed))

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Mask bool [L, max_ops] of the operations that are there; a fresh copy each time."""
        mask = self.space.allowed
        for layer, op in self._removed:
            mask[layer, op] = False
        return mask

    def keep(self, allowed: NDArray[np.bool_]) -> None:
        """Let all other operations leave: their modules give way to `Removed`; no path can use them any more.

        A parameter bank made before holds on to their parameters; `compaction.compact` makes one that does not.

        Args:
            allowed: bool [L, max_ops], operations that stay. One that has left before does not come back.

        Raises:
            InputError: another shape or type, or a layer would lose all its operations. Nothing has left then.
        """
        before = self.allowed
        if allowed.shape != before.shape or allowed.dtype != np.bool_:
            raise InputError(
                f"allowed: expected a bool array {list(before.shape)}, got {allowed.dtype} {list(allowed.shape)}"
            )
        empty = np.flatnonzero(~(before & allowed).any(axis=1))
        if len(empty):
            raise InputError(f"allowed: layer {empty[0]} would have no operation left")
        leaving = [(int(layer), int(op)) for layer, op in np.argwhere(before & ~allowed)]
        for layer, op in leaving:
            cast("nn.ModuleList", self.layers[layer])[op] = Removed().train(self.training)
        self._removed = self._removed.union(leaving)

    def choices(self, path: Path) -> tuple[int, ...]:
        """The operation index of every layer as plain integers.

        Raises:
            InputError: a path that the space does not have, or one through an operation that has left.
        """
        found = choices(path, self._num_ops)
        if self._removed and not self._removed.isdisjoint(enumerate(found)):
            layer, op = min(self._removed.intersection(enumerate(found)))
            name = self.space.ops[layer][op]
            raise InputError(f"path: operation {op} of layer {layer}, {name}, has been removed from the supernet")
        return found

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
        logits: Tensor = self.head(run_in_turn(operations, self.stem(x)))
        return logits

    def loss(self, x: Tensor, path: Path, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Run one path, and compare what it says with labels.

        Args:
            x: images [N, C, H, W].
            path: [L] operation indices.
            labels: int64 [N].
            label_smoothing: see `Head.loss`.

        Returns:
            Mean cross entropy, float32, and the number of correct images, int64; scalars.

        Raises:
            InputError: a path that the space does not have.
        """
        return loss_in_turn(self.stem, self.operations(path), self.head, x, labels, label_smoothing)


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
