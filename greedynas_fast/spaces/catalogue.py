"""The built-in search spaces (Table 1; ResNet and NAS-Bench-Macro macro-architectures)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greedynas_fast.spaces.operations import (
    MB_SE_OPERATIONS,
    MIX_OPERATIONS,
    RES_OPERATIONS,
    SHUFFLE_OPERATIONS,
    OperationOptions,
    operation,
)
from greedynas_fast.spaces.space import SearchSpace
from greedynas_fast.spaces.specs import HeadSpec, LayerSpec, OperationSpec, StemSpec

# (output channels, layers, stride of the first layer) of each stage.
Stages = Sequence[tuple[int, int, int]]
MOBILE_STAGES: Stages = ((32, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
RES50_STAGES: Stages = ((256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2))
MACRO_STAGES: Stages = ((64, 2, 2), (128, 3, 2), (256, 3, 2))

SHUFFLE_OPTIONS = ("shuffle_se", "shuffle_activation")
RES_OPTIONS = ("res_se_reduction",)


def mobile(name: str, names: Sequence[str], options: OperationOptions) -> SearchSpace:
    """The 21-layer MobileNetV2-like macro-architecture (Table 1) with the given operations."""
    block = LayerSpec(-1, -1, 32, 16, 1, (operation("MB1_K3"),))
    layers = stack(16, MOBILE_STAGES, [operation(word, **options) for word in names])
    return SearchSpace(name, StemSpec(32, blocks=(block,)), layers, HeadSpec(320), 3, 1000, 224)


def res50(name: str, names: Sequence[str], options: OperationOptions) -> SearchSpace:
    """The 16-layer ResNet-50 macro-architecture, stride in the k x k convolution."""
    stem = StemSpec(64, kernel_size=7, max_pool=True)
    layers = stack(64, RES50_STAGES, [operation(word, **options) for word in names])
    return SearchSpace(name, stem, layers, HeadSpec(2048, channels=None, dropout=0.0), 3, 1000, 224)


def macro(name: str, names: Sequence[str], options: OperationOptions) -> SearchSpace:
    """NAS-Bench-Macro: 8 layers for 32x32 images, ReLU throughout, no squeeze-and-excitation."""
    relu: OperationOptions = {**options, "activation": "relu"}
    layers = stack(32, MACRO_STAGES, [operation(word, **relu) for word in names])
    return SearchSpace(name, StemSpec(32, stride=1), layers, HeadSpec(256, dropout=0.0), 3, 10, 32)


def stack(in_channels: int, stages: Stages, ops: Sequence[OperationSpec]) -> tuple[LayerSpec, ...]:
    """Layers with the same operations everywhere; only the first of a stage has its stride."""
    layers: list[LayerSpec] = []
    for stage, (out_channels, count, stride) in enumerate(stages):
        for position in range(count):
            step = stride if position == 0 else 1
            layers.append(LayerSpec(len(layers), stage, in_channels, out_channels, step, tuple(ops)))
            in_channels = out_channels
    return tuple(layers)


Builder = Callable[[str, Sequence[str], OperationOptions], SearchSpace]

# name: (macro-architecture, operations in the order of their digits, options that mean something there)
CATALOGUE: dict[str, tuple[Builder, tuple[str, ...], tuple[str, ...]]] = {
    "mb-se": (mobile, MB_SE_OPERATIONS, ()),
    "mb-se-mix": (mobile, (*MB_SE_OPERATIONS, *MIX_OPERATIONS), ()),
    "mb-se-mix-shuffle": (mobile, (*MB_SE_OPERATIONS, *MIX_OPERATIONS, *SHUFFLE_OPERATIONS), SHUFFLE_OPTIONS),
    "res50-se": (res50, RES_OPERATIONS, RES_OPTIONS),
    "nas-bench-macro": (macro, ("ID", "MB3_K3", "MB6_K5"), ()),
}
