from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from greedynas_fast.spaces import SearchSpace
from greedynas_fast.spaces.specs import (
    BottleneckSpec,
    HeadSpec,
    IdentitySpec,
    InvertedResidualSpec,
    LayerSpec,
    ShuffleUnitSpec,
    SqueezeExciteSpec,
    StemSpec,
)

SE = SqueezeExciteSpec()
OPS = (
    InvertedResidualSpec("MB3_K3", 3, (3,)),
    InvertedResidualSpec("MB6_MIX_SE", 6, (3, 5, 7), se=SE),
    IdentitySpec(),
    ShuffleUnitSpec("Shuffle_5", 5),
    ShuffleUnitSpec("Shuffle_x", "x", activation="hard_swish", se=SE),
    BottleneckSpec("Res_K3", 3, 1.0, se=SqueezeExciteSpec(1 / 8, "relu", "sigmoid")),
)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """Four layers with every family of operations, layer 2 with fewer; layer 1's ID has no parameters."""
    return SearchSpace(
        name="tiny",
        stem=StemSpec(8, blocks=(LayerSpec(-1, -1, 8, 8, 1, (InvertedResidualSpec("MB1", 1, (3,)),)),)),
        layers=(
            LayerSpec(0, 0, 8, 16, 2, OPS),
            LayerSpec(1, 0, 16, 16, 1, OPS),
            LayerSpec(2, 1, 16, 24, 1, OPS[:4]),
            LayerSpec(3, 1, 24, 24, 2, OPS),
        ),
        head=HeadSpec(24, 32, dropout=0.2),
        in_channels=3,
        num_classes=5,
        resolution=16,
    )


@pytest.fixture(scope="session")
def images() -> Callable[..., torch.Tensor]:
    """`images(n, seed=.., size=..)`: n random images [n, 3, size, size]."""

    def make(n: int, seed: int = 0, size: int = 16) -> torch.Tensor:
        return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def labels() -> Callable[[int], torch.Tensor]:
    def make(n: int) -> torch.Tensor:
        return torch.arange(n) * 3 % 5

    return make
