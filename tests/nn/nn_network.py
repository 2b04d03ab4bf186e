"""A small network with all that can be part of one step of autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greedynas_fast.nn import Head, InvertedResidual, loss_in_turn
from greedynas_fast.nn.stem_head import Stem
from greedynas_fast.spaces.specs import HeadSpec, InvertedResidualSpec, LayerSpec, SqueezeExciteSpec, StemSpec

GATE = SqueezeExciteSpec(0.25, "relu", "hard_sigmoid")
ALL = ["conv_norm_act", *["inverted_residual"] * 4, "head_loss"]


class Net(nn.Module):
    """A stem with a block, four layers of which one is left out, and a head."""

    def __init__(self) -> None:
        super().__init__()
        first = InvertedResidualSpec("first", 1, (3,))
        self.stem = Stem(StemSpec(6, 3, 2, "hard_swish", blocks=(LayerSpec(-1, 0, 6, 8, 1, (first,)),)), 3)
        self.layers = nn.ModuleList(
            [
                InvertedResidual(InvertedResidualSpec("mix", 3, (3, 5), se=GATE), 8, 8, 1),
                nn.Identity(),
                InvertedResidual(InvertedResidualSpec("plain", 2, (5,)), 8, 12, 2),
                InvertedResidual(InvertedResidualSpec("wide", 6, (7,)), 12, 12, 1),
            ]
        )
        self.head = Head(HeadSpec(12, 20, "relu", dropout=0.2), 4)

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(x)) % 4
        return loss_in_turn(self.stem, self.layers, self.head, x, labels, 0.1)


def made() -> Net:
    torch.manual_seed(0)
    net = Net().train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def images(n: int = 5, size: int = 17) -> Tensor:
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last)
