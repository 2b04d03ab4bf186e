"""A stand-alone network: one operation a layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from greedynas_fast.nn import Head, Stem, build_operation, initialise, loss_in_turn, materialise
from greedynas_fast.spaces import SearchSpace
from greedynas_fast.supernet.choices import Path, choices


class Network(nn.Module):
    """The network of one path. State-dict keys: `stem.*`, `blocks.<layer>.*`, `head.*`.

    Attributes:
        space: the search space.
        path: the operation index of every layer.

    Args:
        space: the search space.
        path: [L] operation indices.
        seed: of the starting weights, which depend on nothing else. The global generators stay as they are.

    Raises:
        InputError: a path that the space does not have.
    """

    def __init__(self, space: SearchSpace, path: Path, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.path = choices(path, space.num_ops)
        # On the meta device PyTorch's own initialisation costs nothing and draws nothing from the global generators.
        with torch.device("meta"):
            self.stem = Stem(space.stem, space.in_channels)
            self.blocks = nn.ModuleList(
                build_operation(layer.ops[op], layer.in_channels, layer.out_channels, layer.stride)
                for layer, op in zip(space.layers, self.path, strict=True)
            )
            self.head = Head(space.head, space.num_classes)
        materialise(self)
        initialise(self, torch.Generator().manual_seed(seed))

    @classmethod
    def from_parts(
        cls, space: SearchSpace, path: Path, *, stem: Stem, blocks: Iterable[nn.Module], head: Head
    ) -> Network:
        """A network of given modules, which it takes as they are: weights, device, mode and all."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.space = space
        network.path = choices(path, space.num_ops)
        network.stem, network.blocks, network.head = stem, nn.ModuleList(blocks), head
        return network

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, num_classes]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    def loss(self, x: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Compare what the network says of images with labels; see `Supernet.loss`.

        Args:
            x: images [N, C, H, W].
            labels: int64 [N].
            label_smoothing: see `Head.loss`.
        """
        return loss_in_turn(self.stem, self.blocks, self.head, x, labels, label_smoothing)
