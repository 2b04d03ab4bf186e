"""Parameters and MACs of the built modules against the cost table of the spaces."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast import spaces
from greedynas_fast.nn import Head, Stem, build_operation
from greedynas_fast.spaces.specs import OperationSpec


def num_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


UNCOUNTED = (nn.BatchNorm2d, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.ReLU)


def count(module: nn.Module, in_channels: int, size: int) -> tuple[int, torch.Size]:
    """Counted MACs for one image (the counter says 2 a MAC) and the shape of the output.

    Normalisation and activations count as nothing and are slow on the meta device, so they are taken out first.
    """
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, UNCOUNTED):
                setattr(part, name, nn.Identity())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = module.eval()(torch.empty(1, in_channels, size, size, device="meta"))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2, y.shape


@cache
def counted_operation(
    spec: OperationSpec, in_channels: int, out_channels: int, stride: int, size: int
) -> tuple[int, int]:
    """Parameters and MACs of one operation; spaces share most of theirs."""
    with torch.device("meta"):
        module = build_operation(spec, in_channels, out_channels, stride)
    params = num_params(module)
    macs, shape = count(module, in_channels, size)
    side = -(-size // stride)
    assert shape == (1, out_channels, side, side)
    return params, macs


CASES = [
    ("mb-se", 224, {}),
    ("mb-se-mix", 97, {}),
    ("mb-se-mix-shuffle", 224, {}),
    ("mb-se-mix-shuffle", 97, {"shuffle_se": True, "shuffle_activation": "hard_swish"}),
    ("res50-se", 65, {}),
    ("res50-se", 224, {"res_se_reduction": 16}),
    ("nas-bench-macro", 32, {}),
    ("nas-bench-macro", 45, {}),
    ("sample", 28, {}),
    ("sample", 37, {"in_channels": 3, "num_classes": 7}),
]


@pytest.mark.parametrize(("name", "resolution", "options"), CASES)
def test_every_operation_costs_what_the_table_says(name: str, resolution: int, options: dict) -> None:
    space = spaces.get(name, **options)
    params, macs = space.op_costs(resolution)
    with torch.device("meta"):
        stem = Stem(space.stem, space.in_channels)
        head = Head(space.head, space.num_classes)
    fixed_params = num_params(stem) + num_params(head)
    stem_macs, (_, _, size, _) = count(stem, space.in_channels, resolution)
    for row, layer in enumerate(space.layers):
        for column, spec in enumerate(layer.ops):
            counted = counted_operation(spec, layer.in_channels, layer.out_channels, layer.stride, size)
            assert counted == (params[row, column], macs[row, column]), f"{spec} at layer {row}"
        size = -(-size // layer.stride)
    head_macs, shape = count(head, space.head.in_channels, size)
    assert shape == (1, space.num_classes)
    assert space.fixed_cost(resolution) == (fixed_params, stem_macs + head_macs)


def test_the_cases_cover_every_named_space() -> None:
    assert {name for name, _, _ in CASES} == set(spaces.names())
