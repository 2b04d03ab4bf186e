"""Models of timm and torchvision, accelerated: same keys, values and gradients; what is swapped and what is not."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from nn_results import Operators, results
from timm.layers import DropPath, create_conv2d
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite, UniversalInvertedResidual
from torch import nn
from torchvision.ops import StochasticDepth

import greedynas_fast as gf
from greedynas_fast.nn import use_backend
from greedynas_fast.ops import direct

MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), 16),
    "mixnet_s": (lambda: timm.create_model("mixnet_s"), 16),
    "tf_mixnet_s": (lambda: timm.create_model("tf_mixnet_s"), 16),
    "mobilenetv3_large_100": (lambda: timm.create_model("mobilenetv3_large_100"), 15),
    "mobilenetv4_conv_small": (lambda: timm.create_model("mobilenetv4_conv_small"), 11),
    "ghostnet_050": (lambda: timm.create_model("ghostnet_050"), 0),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(), 11),
    "efficientnet_b0 of torchvision": (lambda: torchvision.models.efficientnet_b0(), 16),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.5), 17),
    "mnasnet0_5": (lambda: torchvision.models.mnasnet0_5(), 16),
    "shufflenet_v2_x0_5": (lambda: torchvision.models.shufflenet_v2_x0_5(), 16),
}

# What rounding differs by grows fast in five steps, also without us: a ReLU whose input is nearly zero goes the other
# way. These are compared at the same parameters.
CHAOTIC = {"mobilenet_v2", "mobilenetv4_conv_small", "mnasnet0_5", "shufflenet_v2_x0_5"}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name][0]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.drop_prob = 0.0
        elif isinstance(part, StochasticDepth):
            part.p = 0.0
    if hasattr(model, "drop_rate"):
        model.drop_rate = 0.0
    return model


def images(n: int = 4, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)


def losses(model: nn.Module, steps: int, followers: Sequence[nn.Module] = ()) -> list[list[float]]:
    """Of training the model, and of each follower, which has the model's parameters in each step."""
    models = [model, *followers]
    optimizer = torch.optim.SGD(model.parameters(), 2e-3, momentum=0.9)
    labels = torch.arange(4)
    found: list[list[float]] = [[] for _ in models]
    for _ in range(steps):
        for one, of_one in zip(models, found, strict=True):
            for mine, parameter in zip(one.parameters(), model.parameters(), strict=True):
                mine.data.copy_(parameter)
            loss = nn.functional.cross_entropy(one(images().to(next(one.parameters()).dtype)), labels)
            of_one.append(loss.item())
            one.zero_grad()
            loss.backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_five_steps_of_training(name: str) -> None:
    plain = make(name)
    fast = copy.deepcopy(plain)
    listed = gf.accelerate(fast, dry_run=True)
    assert not any(hasattr(part, "backend") for part in fast.modules()), "a dry run changes something"
    swapped = gf.accelerate(fast)
    assert swapped == listed
    blocks = "InvertedResidual", "DepthwiseSeparable", "MBConv"
    assert sum(any(block in line for block in blocks) for line in swapped) == MODELS[name][1]
    assert gf.accelerate(fast) == []
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, fast.state_dict()[key]) for key, value in plain.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(fast.eval()(images()), plain.eval()(images()), rtol=1e-3, atol=1e-4)
    exact = plain.double().train()
    if name in CHAOTIC:
        expected, found = losses(exact, 5, [fast.train()])
    else:
        (expected,), (found,) = losses(exact, 5), losses(fast.train(), 5)
    assert len({round(loss, 3) for loss in expected}) > 3, "nothing is learned"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["mixnet_s", "tf_mixnet_s", "shufflenet_v2_x0_5"])
def test_gradients_are_those_of_the_model(name: str) -> None:
    """Against float64. Usually 1e-4 away, but a ReLU whose input is nearly zero may go the other way."""
    double = make(name).double()
    fast = make(name)
    gf.accelerate(fast)
    results = []
    for model, x in ((double, images().double()), (fast, images())):
        y = model(x)
        weighted = y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append([y.detach(), *torch.autograd.grad(weighted.sum(), model.parameters())])
    largest = max(float(value.norm()) for value in results[0])
    for mine, exact in zip(results[1], results[0], strict=True):
        assert float((mine - exact).norm()) < 2e-2 * float(exact.norm()) + 1e-4 * largest


def test_stochastic_depth_of_torchvision() -> None:
    """Whole images of a block's result are left out, and the rest is made larger."""
    model = make("efficientnet_b0 of torchvision")
    gf.accelerate(model)
    block = next(part for part in model.modules() if getattr(part, "use_res_connect", False))
    x = torch.randn(8, block.out_channels, 6, 6).contiguous(memory_format=torch.channels_last)
    kept = block(x) - x
    block.stochastic_depth.p = 0.5
    torch.manual_seed(1)
    found = block(x) - x
    left_out = [bool((one == 0).all()) for one in found]
    assert 0 < sum(left_out) < 8
    for one, full, gone in zip(found, kept, left_out, strict=True):
        if not gone:
            torch.testing.assert_close(one, 2 * full, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [12, 10])
def test_mixed_1x1_convolutions(channels: int) -> None:
    """Three groups: of four channels each, or of four, three and three."""
    torch.manual_seed(0)
    block = InvertedResidual(channels, channels, exp_ratio=3.0, exp_kernel_size=[1, 1, 1], pw_kernel_size=[1, 1, 1])
    fast = copy.deepcopy(block)
    assert gf.accelerate(fast)[0].endswith("InvertedResidual")
    results = []
    for module, x in ((block.double(), torch.randn(2, channels, 6, 5).double()), (fast, None)):
        x = results[0][0].float() if x is None else x
        x = x.detach().requires_grad_()
        y = module(x)
        gradients = torch.autograd.grad(y.square().sum(), (x, *module.parameters()))
        results.append([x.detach(), y.detach(), *gradients])
    for mine, exact in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=1e-4 * max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize(("channels", "laid_out"), [(24, True), (10, False)])
def test_mixed_1x1_convolutions_without_operators(channels: int, laid_out: bool, ran: list[direct.Laid]) -> None:
    """Groups of one size are laid out as they are: the same bits as by the operator, also backwards alone."""
    torch.manual_seed(0)
    block = InvertedResidual(channels, channels, exp_ratio=3.0, exp_kernel_size=[1, 1, 1], pw_kernel_size=[1, 1, 1])
    gf.accelerate(block)
    x = torch.randn(2, channels, 6, 5).contiguous(memory_format=torch.channels_last)
    with Operators():
        expected = results(copy.deepcopy(block), x)
    copied = copy.deepcopy(block)
    found = results(block, x)
    assert len(ran) == laid_out
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    x.requires_grad_()
    y = copied(x)
    with Operators():
        watched = torch.autograd.grad(
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), [x, *copied.parameters()]
        )
    assert all(torch.equal(*pair) for pair in zip(watched, found[1:], strict=False))
    assert len(ran) == 2 * laid_out


@pytest.mark.parametrize(
    "options",
    [
        {"dw_kernel_size_start": 0, "layer_scale_init_value": None},  # x is added in the operation
        {"dw_kernel_size_start": 5, "layer_scale_init_value": None, "se_layer": SqueezeExcite},
        {"dw_kernel_size_start": 0, "dw_kernel_size_end": 3, "layer_scale_init_value": 0.3},
        {"dw_kernel_size_start": 3, "stride": 2, "pad_type": "same", "act_layer": nn.SiLU},
        {"dw_kernel_size_start": 3, "noskip": True, "drop_path_rate": 0.5},
    ],
)
def test_universal_inverted_residual(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block = UniversalInvertedResidual(12, 12, exp_ratio=3.0, **options)
    fast = copy.deepcopy(block)
    assert gf.accelerate(fast)[0].endswith("UniversalInvertedResidual")
    x = torch.randn(3, 12, 8, 7).contiguous(memory_format=torch.channels_last)
    expected = results(block.double(), x.double())
    hooked = copy.deepcopy(fast)
    called: list[nn.Module] = []
    hooked.dw_mid.register_forward_hook(lambda module, *_: called.append(module))
    with Operators() as operators:
        watched = results(copy.deepcopy(fast), x)
    assert "greedynas.inverted_residual.default" in operators.seen
    for found in (results(fast, x), watched, results(hooked, x)):
        for mine, exact in zip(found, expected, strict=True):
            tolerance = 1e-4 * max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(mine.double(), exact.double(), rtol=0, atol=tolerance)
    assert called == [hooked.dw_mid]


def test_copies_pickles_and_the_way_back() -> None:
    fast = make("mobilenet_v3_small").eval()
    expected = fast(images(2))
    gf.accelerate(fast)
    stored = io.BytesIO()
    torch.save(fast, stored)
    stored.seek(0)
    for model in (copy.deepcopy(fast), torch.load(stored, weights_only=False)):
        assert any("Fused" in type(part).__name__ for part in model.modules())
        torch.testing.assert_close(model(images(2)), expected, rtol=1e-3, atol=1e-4)
    use_backend(fast, "reference")
    assert torch.equal(fast(images(2)), expected)


def test_autocast_and_checkpointing() -> None:
    fast = make("mobilenetv3_large_100")
    gf.accelerate(fast)
    fast.set_grad_checkpointing(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast(images()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in fast.parameters())


def test_export_has_torchs_operations_alone() -> None:
    fast = make("mobilenet_v3_small").eval()
    gf.accelerate(fast)
    program = torch.export.export(fast, (images(2),))
    assert not any("greedynas" in str(node.target) for node in program.graph.nodes)


def test_what_is_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),  # neither depthwise nor 1x1
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3, padding=0, groups=8),
        nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=8),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 13, padding=6, groups=8, bias=False),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
        nn.Conv2d(8, 8, 1),  # a bias
        nn.Conv2d(8, 8, 1, stride=2, bias=False),
        nn.Conv2d(8, 8, 1, groups=2, bias=False),
        nn.Conv2d(8, 8, 1, bias=False),
        nn.BatchNorm2d(8, affine=False),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.GELU(),
    )
    assert gf.accelerate(model) == ["6: torch Conv2d", "10: torch Conv2d", "13: torch BatchNorm2d"]
    assert [type(model[i]).__name__ for i in (6, 10, 13)] == ["DepthwiseConv2d", "PointwiseConv2d", "FusedBatchNorm2d"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_layers_in_turn(autocast: bool, training: bool) -> None:
    """A 1x1 convolution, norms with and without an activation after them; compiled too."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Conv2d(6, 20, 1, bias=False), nn.BatchNorm2d(20), nn.Hardswish(), nn.BatchNorm2d(20))
    plain = plain.train(training)
    fast = copy.deepcopy(plain)
    assert len(gf.accelerate(fast)) == 4
    use_backend(fast, "fused")
    x = torch.randn(3, 6, 40, 41).contiguous(memory_format=torch.channels_last)
    expected = results(copy.deepcopy(plain).double(), x.double())
    operators = Operators()
    for function, watcher in (
        (copy.deepcopy(fast), contextlib.nullcontext()),
        (copy.deepcopy(fast), operators),
        (torch.compile(copy.deepcopy(fast), fullgraph=True, backend="aot_eager"), contextlib.nullcontext()),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), watcher:
            found = results(function, x)  # type: ignore[arg-type]
        assert len(found) == len(expected)
        for mine, exact in zip(found, expected, strict=True):
            tolerance = (8e-2 if autocast else 1e-4) * max(1.0, float(exact.abs().max()))
            torch.testing.assert_close(mine.double(), exact.double(), rtol=0, atol=tolerance)
    assert {"greedynas.pointwise.default", "greedynas.pointwise_backward.default"} <= operators.seen
    assert not any("batch_norm" in name or "hardswish" in name for name in operators.seen)


def test_layers_in_turn_that_torch_runs() -> None:
    """Few pixels, another layout, hooks."""
    plain = nn.Sequential(nn.Conv2d(6, 20, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU())
    fast = copy.deepcopy(plain)
    gf.accelerate(fast)
    many = torch.randn(3, 6, 40, 41).contiguous(memory_format=torch.channels_last)
    for x in (many[:2, :, :9, :9].contiguous(memory_format=torch.channels_last), many.contiguous()):
        with Operators() as operators:
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
        assert "greedynas.pointwise.default" not in operators.seen
    called: list[str] = []
    for layer in fast:
        layer.register_forward_hook(lambda module, *_: called.append(type(module).__name__))
    torch.testing.assert_close(fast(many), plain(many), rtol=1e-5, atol=1e-5)
    assert called == ["PointwiseConv2d", "FusedBatchNorm2d", "ReLU"]
    assert torch.equal(fast[:2](many), fast[1](fast[0](many)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (5, 1, "same"), (7, 1, 3)])
def test_depthwise_convolution_with_bias(kernel: int, stride: int, padding: int | str, autocast: bool) -> None:
    """What `nn.Conv2d` makes where nothing is said about a bias."""
    torch.manual_seed(0)
    conv = nn.Conv2d(20, 20, kernel, stride, padding, groups=20)
    fast = copy.deepcopy(conv)
    assert gf.accelerate(fast) == ["(the model): torch Conv2d"]
    check_depthwise(conv, fast, autocast=autocast)


@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_convolution_padded_as_tensorflow_does(bias: bool) -> None:
    torch.manual_seed(0)
    conv = create_conv2d(20, 20, 5, stride=2, padding="same", depthwise=True, bias=bias)
    fast = copy.deepcopy(conv)
    assert gf.accelerate(fast) == ["(the model): timm Conv2dSame"]
    check_depthwise(conv, fast)


def check_depthwise(conv: nn.Conv2d, fast: nn.Conv2d, *, autocast: bool = False) -> None:
    """Values and gradients of an accelerated convolution of 20 channels, also compiled."""
    torch._dynamo.reset()  # or it gives up after a few layers
    use_backend(fast, "fused")
    for size in ((9, 7), (8, 6)):
        x = torch.randn(2, 20, *size).contiguous(memory_format=torch.channels_last)
        expected = results(copy.deepcopy(conv).double(), x.double())
        for function in (fast, torch.compile(fast, fullgraph=True, backend="aot_eager")):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = results(function, x)  # type: ignore[arg-type]
            assert found[0].dtype is (torch.bfloat16 if autocast else torch.float32)
            assert len(found) == len(expected) == (3 if conv.bias is None else 4)
            for mine, exact in zip(found, expected, strict=True):
                tolerance = (2e-2 if autocast else 1e-5) * max(1.0, float(exact.abs().max()))
                torch.testing.assert_close(mine.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_bias_that_comes_later(kernel: int) -> None:
    fast = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=1 if kernel == 1 else 8, bias=False)
    assert gf.accelerate(fast)
    x = torch.randn(1, 8, 70, 60).contiguous(memory_format=torch.channels_last)
    before = fast(x)
    fast.bias = nn.Parameter(torch.arange(8.0))
    torch.testing.assert_close(fast(x), before + torch.arange(8.0)[:, None, None])


@pytest.mark.slow
def test_compiles() -> None:
    fast = make("mobilenet_v3_small")
    gf.accelerate(fast)
    expected = losses(copy.deepcopy(fast), 2)
    torch.testing.assert_close(losses(torch.compile(fast, fullgraph=True), 2), expected, rtol=1e-3, atol=1e-3)  # type: ignore[arg-type]
