"""Blocks against independent computations, odd sizes, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from greedynas_fast.errors import InputError
from greedynas_fast.nn import (
    Bottleneck,
    Head,
    InvertedResidual,
    MixedConv,
    ShuffleUnit,
    SqueezeExcite,
    Stem,
    build_operation,
    channel_shuffle,
    initialise,
)
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
OPERATIONS = [
    IdentitySpec(),
    InvertedResidualSpec("MB1", 1, (3,)),
    InvertedResidualSpec("MB3_K5_SE", 3, (5,), se=SE),
    InvertedResidualSpec("MB6_MIX", 6, (3, 5, 7), activation="relu"),
    ShuffleUnitSpec("Shuffle_7", 7),
    ShuffleUnitSpec("Shuffle_x", "x", activation="hard_swish", se=SE),
    BottleneckSpec("Res", 5, 1.5, se=SqueezeExciteSpec(1 / 8, "relu", "sigmoid")),
    BottleneckSpec("ResNeXt", 3, 16.0, groups=4),
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module, seed: int = 1) -> nn.Module:
    """Weights, biases and statistics that are all different from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.5, generator=generator)
    return module


@pytest.mark.parametrize("spec", OPERATIONS, ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride"), [(16, 16, 1), (16, 24, 1), (16, 20, 2), (16, 16, 2)]
)
@pytest.mark.parametrize(("height", "width"), [(7, 5), (8, 9), (1, 1)])
def test_shapes_strides_and_layouts(
    spec: object, in_channels: int, out_channels: int, stride: int, height: int, width: int
) -> None:
    module = randomised(build_operation(spec, in_channels, out_channels, stride)).eval()
    x = randn(2, in_channels, height, width)
    before = x.clone()
    y = module(x)
    assert y.shape == (2, out_channels, -(-height // stride), -(-width // stride))
    assert torch.equal(x, before), "an operation may not change its input"
    last = module(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, y, rtol=1e-4, atol=1e-4)
    if height > 1:
        assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", OPERATIONS[1:], ids=lambda spec: spec.name)
def test_gradients_reach_every_parameter_and_match_finite_differences(spec: object) -> None:
    module = randomised(build_operation(spec, 4, 4, 1)).double().train()
    x = randn(2, 4, 3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: module(t).sigmoid().sum(), (x,), atol=1e-4)
    module.zero_grad()
    module(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_the_identity_is_nothing_or_a_projection_without_activation() -> None:
    assert isinstance(build_operation(IdentitySpec(), 8, 8, 1), nn.Identity)
    module = randomised(build_operation(IdentitySpec(), 3, 5, 2)).eval()
    x = randn(2, 3, 5, 5)
    y = torch.einsum("oi,nihw->nohw", module.conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    scale = module.bn.weight / (module.bn.running_var + module.bn.eps).sqrt()
    expected = (y - module.bn.running_mean[:, None, None]) * scale[:, None, None] + module.bn.bias[:, None, None]
    torch.testing.assert_close(module(x), expected)


@settings(max_examples=25, deadline=None)
@given(half=st.integers(1, 9), height=st.integers(1, 4), width=st.integers(1, 4))
def test_channel_shuffle_follows_the_index_map(half: int, height: int, width: int) -> None:
    x = np.arange(2 * 2 * half * height * width, dtype=np.float32).reshape(2, 2 * half, height, width)
    expected = np.empty_like(x)
    for group in range(2):
        for i in range(half):
            expected[:, 2 * i + group] = x[:, group * half + i]
    for layout in (torch.contiguous_format, torch.channels_last):
        shuffled = channel_shuffle(torch.from_numpy(x).to(memory_format=layout))
        assert np.array_equal(shuffled.numpy(), expected)


def test_shuffle_unit_keeps_one_half_and_transforms_the_other() -> None:
    unit = randomised(ShuffleUnit(ShuffleUnitSpec("Shuffle_3", 3), 8, 12, 1)).eval()
    x = randn(2, 8, 5, 4)
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # channel shuffle of 8 channels in 2 groups
    y = unit(x)
    assert torch.equal(y[:, :4], x[:, order[:4]])
    torch.testing.assert_close(y[:, 4:], unit.branch_main(x[:, order[4:]]))
    assert unit.branch_main[0].weight.shape == (6, 4, 1, 1)
    assert unit.branch_main[5].weight.shape == (8, 6, 1, 1)


def test_shuffle_unit_with_stride_runs_the_whole_input_through_both_branches() -> None:
    unit = randomised(ShuffleUnit(ShuffleUnitSpec("Shuffle_x", "x"), 6, 10, 2)).eval()
    x = randn(1, 6, 7, 7)
    y = unit(x)
    torch.testing.assert_close(y[:, :5], unit.branch_proj(x))
    torch.testing.assert_close(y[:, 5:], unit.branch_main(x))
    depthwise = [m for m in unit.branch_main if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [(m.in_channels, m.stride[0]) for m in depthwise] == [(6, 2), (5, 1), (5, 1)]


@pytest.mark.parametrize(
    ("channels", "widths"), [(9, [3, 3, 3]), (10, [4, 4, 2]), (11, [4, 4, 3]), (4, [2, 2]), (2, [1, 1]), (96, [32] * 3)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_mixconv_is_one_depthwise_kernel_a_group(channels: int, widths: list[int], stride: int) -> None:
    conv = randomised(MixedConv(channels, (3, 5, 7), stride))
    assert [part.in_channels for part in conv] == widths
    assert list(conv.state_dict()) == [f"{i}.weight" for i in range(len(widths))]
    # Oracle: every kernel padded with zeros to 7 x 7, one depthwise convolution over all channels.
    weight = torch.cat([functional.pad(part.weight, [(7 - part.kernel_size[0]) // 2] * 4) for part in conv])
    x = randn(2, channels, 9, 6)
    expected = functional.conv2d(x, weight, stride=stride, padding=3, groups=channels)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_mixconv_refuses_a_negative_group() -> None:
    with pytest.raises(InputError, match="1 channels cannot be split into 3 groups"):
        MixedConv(1, (3, 5, 7), 1)
    with pytest.raises(InputError, match="MixConv"):
        build_operation(InvertedResidualSpec("MIX", 1, (3, 5, 7)), 1, 4, 1)


@pytest.mark.parametrize("gate", ["hard_sigmoid", "sigmoid"])
@pytest.mark.parametrize("act", ["relu", "hard_swish", "identity"])
def test_squeeze_excite_against_plain_arithmetic(gate: str, act: str) -> None:
    module = randomised(SqueezeExcite(10, SqueezeExciteSpec(0.25, act, gate)))
    x = randn(3, 10, 5, 3)
    mean = x.numpy().astype(np.float64).mean(axis=(2, 3))
    state = {key: value.numpy().astype(np.float64) for key, value in module.state_dict().items()}
    hidden = mean @ state["conv_reduce.weight"][:, :, 0, 0].T + state["conv_reduce.bias"]
    assert hidden.shape == (3, 2)  # floor(0.25 * 10)
    hidden = {
        "relu": np.maximum(hidden, 0),
        "identity": hidden,
        "hard_swish": hidden * np.clip(hidden + 3, 0, 6) / 6,
    }[act]
    logit = hidden @ state["conv_expand.weight"][:, :, 0, 0].T + state["conv_expand.bias"]
    scale = np.clip(logit + 3, 0, 6) / 6 if gate == "hard_sigmoid" else 1 / (1 + np.exp(-logit))
    expected = x.numpy() * scale[:, :, None, None]
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_squeeze_excite_never_reduces_to_nothing() -> None:
    assert SqueezeExcite(3, SqueezeExciteSpec(0.25)).conv_reduce.out_channels == 1


def test_inverted_residual_names_order_and_residual() -> None:
    block = randomised(InvertedResidual(InvertedResidualSpec("MB3_K5_SE", 3, (5,), se=SE), 4, 4, 1)).eval()
    children = [name for name, child in block.named_children() if any(True for _ in child.parameters())]
    assert children == ["conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"]
    x = randn(2, 4, 6, 5)
    y = functional.hardswish(block.bn1(block.conv_pw(x)))
    y = functional.hardswish(block.bn2(functional.conv2d(y, block.conv_dw.weight, padding=2, groups=12)))
    torch.testing.assert_close(block(x), block.bn3(block.conv_pwl(block.se(y))) + x)


def test_expansion_one_has_no_expand_convolution() -> None:
    block = InvertedResidual(InvertedResidualSpec("MB1", 1, (3,)), 4, 6, 1)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv_dw", "bn2", "conv_pwl", "bn3"}


def test_bottleneck_strides_in_the_spatial_convolution_and_projects_the_shortcut() -> None:
    block = randomised(Bottleneck(BottleneckSpec("Res", 5, 0.5, se=SE), 8, 16, 2)).eval()
    x = randn(2, 8, 7, 7)
    y = torch.relu(block.bn1(functional.conv2d(x, block.conv1.weight)))
    y = torch.relu(block.bn2(functional.conv2d(y, block.conv2.weight, stride=2, padding=2)))
    y = block.se(block.bn3(functional.conv2d(y, block.conv3.weight)))
    shortcut = block.downsample[1](functional.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), torch.relu(y + shortcut))
    assert block.conv2.weight.shape == (2, 2, 5, 5)  # planes 16 / 4, factor 0.5


def test_stem_and_head() -> None:
    fixed = LayerSpec(-1, -1, 8, 12, 1, (InvertedResidualSpec("MB1", 1, (3,)),))
    stem = randomised(Stem(StemSpec(8, 7, max_pool=True, blocks=(fixed,)), 3)).eval()
    x = randn(2, 3, 33, 30)
    pooled = functional.max_pool2d(torch.relu(stem.bn(stem.conv(x))), 3, 2, 1)
    torch.testing.assert_close(stem(x), stem.blocks[0](pooled))
    assert stem(x).shape == (2, 12, 9, 8)
    head = randomised(Head(HeadSpec(12, None, dropout=0.5), 5)).eval()
    features = randn(2, 12, 3, 2)
    expected = features.mean((2, 3)) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(head(features), expected)
    assert not torch.equal(head.train()(features), expected)
    assert Head(HeadSpec(12, 20), 5).classifier.in_features == 20


def test_initialise_is_a_function_of_its_generator() -> None:
    module = nn.Sequential(
        randomised(Stem(StemSpec(64), 3)),
        randomised(build_operation(OPERATIONS[3], 64, 64, 1)),
        randomised(Head(HeadSpec(64, 256), 50)),
    )
    state = torch.random.get_rng_state()
    initialise(module, torch.Generator().manual_seed(5))
    first = {key: value.clone() for key, value in module.state_dict().items()}
    initialise(randomised(module, seed=9), torch.Generator().manual_seed(5))
    assert all(torch.equal(first[key], value) for key, value in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    block = module[1]
    deviations = [(block.conv_pw.weight, 384), (block.conv_dw[2].weight, 49), (block.conv_pwl.weight, 64)]
    for weight, fan_out in deviations:
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    assert module[2].classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert module[2].classifier.bias.abs().max() == 0
    assert block.bn2.weight.eq(1).all()
    assert block.bn2.running_var.eq(1).all()
    assert block.bn2.bias.eq(0).all()
    assert block.bn2.running_mean.eq(0).all()


@pytest.mark.parametrize(
    ("spec", "shape", "message"),
    [
        (ShuffleUnitSpec("Shuffle_3", 3), (7, 8, 1), "Shuffle_3: expected an even input"),
        (ShuffleUnitSpec("Shuffle_3", 3), (8, 4, 1), "wider than half"),
        (BottleneckSpec("Res", 3, 1.0), (8, 3, 1), "expected positive channels"),
        (BottleneckSpec("Res", 4, 1.0), (8, 8, 1), "kernel_size: expected an odd positive number, got 4"),
        (IdentitySpec(), (8, 8, 0), "stride: expected 1 or more, got 0"),
        (InvertedResidualSpec("MB", 3, (3,), activation="gelu"), (8, 8, 1), "activation: expected identity, relu"),
        (InvertedResidualSpec("MB", 3, (3,), se=SqueezeExciteSpec(gate="tanh")), (8, 8, 1), "se gate: expected"),
        ("MB3_K3", (8, 8, 1), "spec: expected the record of an operation, got str"),
    ],
)
def test_bad_operations_are_refused_in_plain_words(spec: object, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_operation(spec, *shape)


def test_a_fixed_block_has_one_operation() -> None:
    two = LayerSpec(-1, -1, 8, 8, 1, (IdentitySpec(), InvertedResidualSpec("MB1", 1, (3,))))
    with pytest.raises(InputError, match="a fixed block has one operation, got 2"):
        Stem(StemSpec(8, blocks=(two,)), 3)
