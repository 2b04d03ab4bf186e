"""Fused blocks against the same blocks on torch's layers: values, gradients, running statistics; when they fuse."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from nn_results import results as run
from torch import nn

from greedynas_fast import spaces
from greedynas_fast.errors import InputError
from greedynas_fast.nn import ConvIdentity, Head, InvertedResidual, ShuffleUnit, Stem, build_operation, use_backend
from greedynas_fast.nn.backend import Fusable, what_runs
from greedynas_fast.spaces.specs import LayerSpec
from greedynas_fast.supernet import batch_statistics


def layers() -> Iterator[tuple[str, LayerSpec, int]]:
    """Every kind of operation of the built-in spaces once at each stride: (space, layer, operation index)."""
    seen = set()
    for name in ("mb-se-mix-shuffle", "sample", "res50-se"):
        for layer in spaces.get(name).layers:
            for index, op in enumerate(layer.ops):
                key = (op.name, layer.stride, layer.in_channels == layer.out_channels)
                if key not in seen:
                    seen.add(key)
                    yield name, layer, index


CASES = [
    pytest.param(layer, index, id=f"{name}-{layer.index}-{layer.ops[index].name}") for name, layer, index in layers()
]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 2e-5) -> None:
    """Within `tolerance` of the largest value of each tensor (or of 1, where all are smaller)."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        scale = max(float(theirs.abs().max()), 1.0) if theirs.numel() else 1.0
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=tolerance * scale)


def expected_of(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    # Not in double precision: a ReLU whose input is nearly zero would then go either way.
    plain = copy.deepcopy(module)
    use_backend(plain, "reference")
    return run(plain, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "index"), CASES)
def test_fused_blocks_equal_plain_ones(layer: LayerSpec, index: int, training: bool) -> None:
    torch.manual_seed(0)
    module = build_operation(layer.ops[index], layer.in_channels, layer.out_channels, layer.stride)
    module.to(memory_format=torch.channels_last).train(training)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    use_backend(module, "fused" if any(isinstance(part, Fusable) for part in module.modules()) else "auto")
    x = torch.randn(3, layer.in_channels, 7, 5).contiguous(memory_format=torch.channels_last)
    expected = expected_of(module, x)
    assert_equal(run(module, x), expected)


def test_stem_and_head() -> None:
    space = spaces.get("sample")
    torch.manual_seed(0)
    stem, head = Stem(space.stem, 1), Head(space.head, 10)
    head.dropout.p = 0.0
    for module, x in ((stem, torch.randn(4, 1, 12, 12)), (head, torch.randn(4, space.head.in_channels, 3, 3))):
        use_backend(module, "fused")
        expected = expected_of(module, x)
        assert_equal(run(module, x), expected)


def block(op: int = 5) -> InvertedResidual:
    layer = spaces.get("sample").layers[1]
    torch.manual_seed(0)
    module = build_operation(layer.ops[op], layer.in_channels, layer.out_channels, layer.stride)
    assert isinstance(module, InvertedResidual)
    return module


X = torch.randn(4, 24, 6, 6, generator=torch.Generator().manual_seed(1))


def test_batch_statistics_leave_the_running_ones_alone() -> None:
    module = block().eval()
    before = [value.clone() for value in module.buffers()]
    expected = expected_of(copy.deepcopy(module).train(), X)[0]
    with batch_statistics(module):
        assert_equal([module(X).detach()], [expected])
    assert all(torch.equal(*pair) for pair in zip(module.buffers(), before, strict=True))


def test_cumulative_average() -> None:
    fused, plain = block(), block()
    use_backend(plain, "reference")
    for module in (fused, plain):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
        for factor in (1.0, 2.0, 3.0):
            module(factor * X)
    assert_equal([*fused.buffers()], [*plain.buffers()])


def test_hooks_see_every_layer() -> None:
    module, seen = block(), []
    module.bn2.register_forward_hook(lambda *args: seen.append(args))
    module(X)
    assert len(seen) == 1
    use_backend(module, "fused")
    with pytest.raises(InputError, match="no fused operation for BatchNorm2d"):
        module(X)


def test_fused_refuses_what_auto_leaves_to_torch() -> None:
    module = block().double()
    assert module(X.double()).dtype == torch.float64
    use_backend(module, "fused")
    with pytest.raises(InputError, match=r"no fused operation for torch\.float64 on cpu"):
        module(X.double())
    with pytest.raises(InputError, match="expected auto, fused or reference, got 'fast'"):
        use_backend(module, "fast")  # type: ignore[arg-type]


def test_what_runs() -> None:
    assert what_runs("auto", torch.device("cpu")) == what_runs("fused", torch.device("cpu")) == "fused (compiled core)"
    assert what_runs("reference", torch.device("cpu")) == what_runs("auto", torch.device("meta")) == "torch's layers"


@pytest.mark.parametrize("make", [block, lambda: ConvIdentity(24, 32, 2), lambda: shuffle_unit()])
def test_copies_pickles_and_state_dicts(make: Callable[[], nn.Module]) -> None:
    module = make()
    use_backend(module, "fused")
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    plain = make()
    use_backend(plain, "reference")
    plain.load_state_dict(module.state_dict())
    expected = run(copy.deepcopy(module), X)
    assert_equal(run(loaded, X), expected, 0.0)
    assert_equal(run(plain, X), expected)


def shuffle_unit() -> ShuffleUnit:
    layer = next(layer for layer in spaces.get("mb-se-mix-shuffle").layers if layer.stride == 1)
    index = next(i for i, op in enumerate(layer.ops) if "huffle" in type(op).__name__)
    torch.manual_seed(0)
    module = build_operation(layer.ops[index], 24, 24, 1)
    assert isinstance(module, ShuffleUnit)
    return module


def test_autocast() -> None:
    module = block()
    expected = expected_of(module, X)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(module, X)
    assert found[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in found[1 : 2 + len(list(module.parameters()))])
    # 2 ** -8 of rounding, through three batch norms of few values
    assert_equal(found, expected, 0.2)


def test_gradient_checkpointing() -> None:
    module, x = block().eval(), X.clone().requires_grad_()
    expected = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
    y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), [x, *module.parameters()])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_export_traces_torchs_layers() -> None:
    module = block().eval()
    program = torch.export.export(module, (X,))
    assert not any("greedynas" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(X), module(X), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("op", [2, 5])
def test_compiles_in_one_graph(op: int) -> None:
    module = block(op)
    expected = run(copy.deepcopy(module), X)
    assert_equal(run(torch.compile(module, fullgraph=True), X), expected)
