"""A layer for several paths with interpreted kernels: `test_kernels_interpreted.py` runs this file."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

from greedynas_fast.nn import build_operation, initialise
from greedynas_fast.ops import masked_norm_core as core
from greedynas_fast.ops.ragged import ragged
from greedynas_fast.spaces.specs import IdentitySpec, InvertedResidualSpec, SqueezeExciteSpec
from greedynas_fast.supernet.batchnorm import batch_statistics
from greedynas_fast.supernet.masked_layer import run_masked_layer

_LIBRARY = torch.library.Library("greedynas", "IMPL")
for _name, _function in core.IMPLEMENTATIONS.items():
    _LIBRARY.impl(_name, _function, "CPU")

SPECS = (
    InvertedResidualSpec("MB3_K3_SE", 3, (3,), se=SqueezeExciteSpec()),
    IdentitySpec(),
    InvertedResidualSpec("MB6_MIX", 6, (3, 5)),
)


@pytest.mark.parametrize(("choices", "out_channels"), [((0, 1, 2, 0), 8), ((2, 0), 12)])
def test_equals_each_group_alone(choices: tuple[int, ...], out_channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("masked_norm_act", "masked_gate", "masked_pointwise"):
        monkeypatch.setattr(importlib.import_module(f"greedynas_fast.ops.{name}"), "backend", lambda x: "triton")
    operations = [build_operation(spec, 8, out_channels, 1) for spec in SPECS]
    for operation in operations:
        initialise(operation, torch.Generator().manual_seed(0))
    reference = copy.deepcopy(operations)
    layout = ragged([1, 2, 1, 1][: len(choices)], 3, 3, [8] * len(choices))
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, 8, 3, 3, generator=generator).requires_grad_() for n in layout.samples]
    x = layout.pack([part.detach() for part in parts]).requires_grad_()

    y, out = run_masked_layer(operations, choices, x, layout)
    total = torch.zeros(())
    for group, (op, part) in enumerate(zip(choices, parts, strict=True)):
        with batch_statistics(reference[op]):
            want = reference[op](part * 1)
        weights = torch.randn(want.shape, generator=generator)
        torch.testing.assert_close(out.view(y, group), want, rtol=2e-5, atol=2e-5)
        total = total + (out.view(y, group) * weights).sum() + (want * weights).sum()
    total.backward()
    for group, part in enumerate(parts):
        torch.testing.assert_close(layout.view(x.grad, group), part.grad, rtol=1e-4, atol=1e-4)
    for op in set(choices):
        pairs = zip(operations[op].named_parameters(), reference[op].parameters(), strict=True)
        for (name, own), other in pairs:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
