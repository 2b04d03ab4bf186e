"""The fused layers on a GPU against the CPU reference: results and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from greedynas_fast.ops import (
    bn_core,
    cuda_kernels,  # noqa: F401  registers the operators
    mixconv,
    rows,
)
from greedynas_fast.reference import bn_act as bn_reference
from greedynas_fast.reference import mixconv as mixconv_reference
from greedynas_fast.reference import squeeze_excite as se_reference

OPS = torch.ops.greedynas
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of float32 sums in another order; half a step of the result's type comes on top.
SUM_ERROR = 1e-5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def images(n: int, c: int, h: int, w: int, dtype: torch.dtype, gap: int = 0) -> Tensor:
    """Channels-last on the CPU, with `gap` channels of another tensor behind each pixel's."""
    x = torch.randn(n, c + gap, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    return x[:, :c]


def assert_near(got: Tensor, want: Tensor, name: str, rounded_before: float = 0.0) -> None:
    """Within the error of sums and of rounding the result; `rounded_before`: the size of what was rounded earlier."""
    assert got.shape == want.shape, name
    step = 0.0 if got.dtype is torch.float32 else torch.finfo(got.dtype).eps
    want = want.detach().double()
    largest = float(want.abs().max()) if want.numel() else 0.0
    error = (got.detach().cpu().double() - want).abs()
    allowed = SUM_ERROR * (want.abs() + largest + 1) + step * (want.abs() + rounded_before)
    assert bool((error <= allowed).all()), f"{name}: off by {float((error / allowed).max()):.3g} of what is allowed"


def near_a_kink(z: Tensor, activation: str) -> Tensor:
    """Where the slope of the activation depends on how z was rounded."""
    kinks = {"relu": (0.0,), "hard_swish": (-3.0, 3.0)}.get(activation, ())
    return torch.stack([torch.zeros_like(z, dtype=torch.bool), *((z - kink).abs() < 1e-3 for kink in kinks)]).any(0)


def random_norm(channels: int, activation: str) -> tuple[Tensor, Tensor]:
    scale, shift = torch.randn(channels), torch.randn(channels)
    return scale, torch.where(near_a_kink(shift, activation), shift + 0.01, shift)


def clear_of_kinks(x: Tensor, scale: Tensor, shift: Tensor, activation: str) -> Tensor:
    """x in place, with zeros where x * scale + shift is near a kink."""
    z = x.float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    return x.masked_fill_(near_a_kink(z, activation), 0)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Of float32 copies of the inputs, by autograd through the reference."""
    leaves = [value.detach().float().requires_grad_() for value in inputs]
    return torch.autograd.grad(function(*leaves), leaves, grad.float())


MIXCONV = [
    # n, h, w, (channels, kernel) of the groups, stride, activation, channels behind each pixel's
    (2, 7, 7, [(96, 3)], 1, "hard_swish", 0),
    (3, 14, 14, [(80, 3), (80, 5), (80, 7)], 1, "hard_swish", 0),
    (2, 28, 28, [(48, 7), (40, 5)], 2, "relu", 0),
    (1, 57, 113, [(40, 7)], 1, "identity", 8),
    (1, 112, 112, [(32, 5)], 2, "none", 0),
    (2, 30, 60, [(5, 11)], 1, "relu", 0),
    (1, 30, 60, [(5, 11), (33, 9)], 2, "hard_swish", 0),
    (40, 7, 7, [(16, 7), (24, 3)], 1, "hard_swish", 0),
    (2, 5, 3, [(17, 11), (3, 9), (1, 1)], 1, "relu", 3),
    (5, 1, 1, [(3, 3)], 2, "none", 0),
    (0, 4, 4, [(8, 3)], 1, "relu", 0),
    (20, 7, 7, [(1152, 5)], 1, "hard_swish", 0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "padding"),
    [(case, padding) for case in MIXCONV for padding in ("symmetric", "same_upper")[: case[4]]],  # the same at stride 1
)
def test_mixconv(
    device: torch.device,
    case: tuple[int, int, int, list[tuple[int, int]], int, str, int],
    padding: str,
    dtype: torch.dtype,
) -> None:
    n, h, w, groups, stride, activation, gap = case
    channels = sum(count for count, _ in groups)
    kernels = [kernel for _, kernel in groups]
    x = images(n, channels, h, w, dtype, gap)
    weights = [torch.randn(count, 1, kernel, kernel) / kernel for count, kernel in groups]
    norm = (None, None) if activation == "none" else random_norm(channels, activation)
    if activation != "none":
        clear_of_kinks(x, *norm, activation)
    on_device = [value if value is None else value.to(device) for value in norm]
    layer = ([weight.to(device) for weight in weights], kernels, stride, padding, *on_device, activation)

    def reference(x: Tensor, *parameters: Tensor) -> Tensor:
        scale_shift, own = parameters[: len(parameters) - len(weights)], parameters[-len(weights) :]
        norm_act = (*scale_shift, activation) if scale_shift else None
        return mixconv_reference.mixconv(x, own, kernels, stride, norm_act, padding=padding)

    x_device = images(n, channels, h, w, dtype, gap).to(device).copy_(x)
    parameters = [value for value in norm if value is not None] + weights
    y, stats = OPS.mixconv(x_device, *layer, True)
    want = reference(x.float(), *parameters)
    assert_near(y, want, "y")
    stored = y.cpu().double()
    assert_near(stats, torch.stack([stored.sum((0, 2, 3)), stored.square().sum((0, 2, 3))]), "stats")

    grad = torch.randn(want.shape).to(dtype).contiguous(memory_format=torch.channels_last)
    stats_grad = torch.randn(2, channels) / 4
    whole = grad.double() + stats_grad[0].double().view(-1, 1, 1) + 2 * stored * stats_grad[1].double().view(-1, 1, 1)
    for through, of_y in ((None, grad), (stats_grad.to(device), whole)):
        wanted = gradients(reference, [x, *parameters], of_y)
        got_x, got_weights, got_norm = OPS.mixconv_backward(
            grad.to(device), through, y, x_device, *layer, [True, True, activation != "none"]
        )
        assert_near(got_x, wanted[0], "x_grad")
        for got, expected in zip(
            [*got_norm, *got_weights] if activation != "none" else got_weights, wanted[1:], strict=True
        ):
            assert_near(got, expected, "gradient of a parameter")


def test_results_are_the_same_bits_each_time(device: torch.device) -> None:
    x = images(64, 96, 28, 28, torch.bfloat16).to(device)
    weights = [torch.randn(48, 1, k, k, device=device) for k in (5, 7)]
    norm = (torch.randn(96, device=device), torch.randn(96, device=device))
    layer = (weights, [5, 7], 1, "symmetric", *norm, "hard_swish")
    y, stats = OPS.mixconv(x, *layer, True)
    first = OPS.mixconv_backward(y, stats, y, x, *layer, [True, True, True])
    for _ in range(3):
        again = OPS.mixconv(x, *layer, True)
        assert torch.equal(again[0], y)
        assert torch.equal(again[1], stats)
        x_grad, weight_grads, norm_grad = OPS.mixconv_backward(y, stats, y, x, *layer, [True, True, True])
        assert torch.equal(x_grad, first[0])
        assert all(torch.equal(a, b) for a, b in zip(weight_grads, first[1], strict=True))
        assert torch.equal(norm_grad, first[2])


ROWS = [
    (2, 16, 7, 7, 0),
    (3, 17, 5, 3, 0),
    (1, 1, 2, 1, 0),
    (4, 40, 9, 9, 8),
    (2, 24, 112, 112, 0),
    (16, 1152, 7, 7, 0),
    (5, 3, 4, 4, 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("activation", ["identity", "relu", "hard_swish", "silu", "relu6"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_bn_act(
    device: torch.device, size: tuple[int, int, int, int, int], dtype: torch.dtype, activation: str, has_residual: bool
) -> None:
    n, c, h, w, gap = size
    x, residual = images(n, c, h, w, dtype, gap), images(n, c, h, w, dtype)
    weight, bias = torch.randn(c), torch.randn(c)
    layer = (weight.to(device), bias.to(device), residual.to(device) if has_residual else None, 1e-3, activation)

    def reference(*values: Tensor) -> Tensor:
        own, own_weight, own_bias, *other = values
        mean, variance = own.mean((0, 2, 3)), own.var((0, 2, 3), correction=0)
        shaped = [value.view(1, -1, 1, 1) for value in (mean, variance, own_weight, own_bias)]
        z = (own - shaped[0]) * torch.rsqrt(shaped[1] + 1e-3) * shaped[2] + shaped[3]
        return bn_reference.ACTIVATIONS[activation](z + other[0] if other else z)

    inputs = [x, weight, bias, *([residual] if has_residual else [])]
    x_device = images(n, c, h, w, dtype, gap).to(device).copy_(x)
    y, moments = OPS.bn_act_training(x_device, *layer)
    assert_near(moments[0], x.double().mean((0, 2, 3)), "mean")
    assert_near(moments[1], x.double().var((0, 2, 3), correction=0), "variance")
    assert_near(y, reference(*(value.float() for value in inputs)), "y")
    assert torch.equal(OPS.bn_moments(x_device), moments)
    assert torch.equal(OPS.bn_act_forward(x_device, moments, *layer), y)

    grad = torch.randn(y.shape).to(dtype).contiguous(memory_format=torch.channels_last)
    mean, deviation = moments[0].cpu().view(-1, 1, 1), (moments[1].cpu() + 1e-3).sqrt().view(-1, 1, 1)
    z = (x.float() - mean) / deviation * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    z = z + residual.float() if has_residual else z
    grad.masked_fill_(near_a_kink(z, activation), 0)
    wanted = gradients(reference, inputs, grad)
    got = OPS.bn_act_backward(grad.to(device), x_device, moments, *layer, True, [True, True, True, has_residual])
    for result, expected, name in zip(got, wanted, ("x", "weight", "bias", "residual"), strict=False):
        assert_near(result, expected, f"gradient of {name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ROWS)
def test_affine_and_through_moments(
    device: torch.device, size: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    n, c, h, w, gap = size
    x, weight, bias = images(n, c, h, w, dtype, gap), torch.randn(c), torch.randn(c)
    x_device = x.to(device)
    moments = OPS.bn_moments(x_device)
    scale_shift = OPS.bn_affine(moments, weight.to(device), bias.to(device), 1e-3)
    assert_near(scale_shift, bn_core.affine_op(moments.cpu(), weight, bias, 1e-3), "scale and shift")
    # The whole gradient of bn(x) is that with constant scale and shift, and what this adds.
    grad = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    constant = (grad.double() * scale_shift[0].cpu().double().view(-1, 1, 1)).to(dtype).to(device)
    sums = torch.stack([(grad.double() * x.double()).sum((0, 2, 3)), grad.double().sum((0, 2, 3))]).float().to(device)
    parameters = (weight.to(device), bias.to(device))
    size_before = float(constant.abs().max())
    whole = constant.contiguous(memory_format=torch.channels_last)
    got = OPS.bn_through_moments_(whole, x_device, moments, *parameters, sums, 1e-3, True)
    want = bn_core.backward_op(
        *(grad.float(), x.float(), moments.cpu(), weight, bias, None, 1e-3, "identity", True, [True, True, True, False])
    )
    for result, expected, name in zip((whole, *got), want, ("x", "weight", "bias"), strict=False):
        assert_near(result, expected, f"gradient of {name}", size_before)


def test_running_statistics(device: torch.device) -> None:
    moments, running = torch.rand(2, 17), torch.rand(2, 17)
    want = running.clone()
    bn_core.update_op(want[0], want[1], moments, 11, 0.3)
    got = running.to(device)
    OPS.bn_update_(got[0], got[1], moments.to(device), 11, 0.3)
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("prologue", ["", "identity", "relu", "hard_swish"])
def test_squeeze_excite(
    device: torch.device, size: tuple[int, int, int, int, int], dtype: torch.dtype, prologue: str
) -> None:
    n, c, h, w, gap = size
    x = images(n, c, h, w, dtype, gap)
    reduced = max(c // 4, 1)
    parameters = [
        torch.randn(reduced, c) / c**0.5,
        torch.randn(reduced),
        torch.randn(c, reduced) / reduced**0.5,
        torch.randn(c),
    ]
    norm = random_norm(c, prologue) if prologue else ()
    if prologue:
        clear_of_kinks(x, *norm, prologue)

    def reference(*values: Tensor) -> Tensor:
        own, *rest = values
        norm_act = (rest[4], rest[5], prologue) if prologue else None
        return se_reference.squeeze_excite(own, *rest[:4], activation="relu", gate="sigmoid", norm_act=norm_act)

    layer = (*(value.to(device) for value in parameters), *(value.to(device) for value in norm))
    layer = (*layer, *([] if prologue else [None, None]), "relu", "sigmoid", prologue)
    x_device = x.to(device)
    y, means, hidden, logits = OPS.squeeze_excite(x_device, *layer)
    inputs = [x, *parameters, *norm]
    assert_near(y, reference(*(value.float() for value in inputs)), "y")
    assert torch.equal(OPS.excite(x_device, logits, layer[4], layer[5], "sigmoid", prologue), y)
    grad = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    wanted = gradients(reference, inputs, grad)
    got = OPS.squeeze_excite_backward(grad.to(device), x_device, means, hidden, logits, *layer)
    names = ("x", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "scale", "shift")
    for result, expected, name in zip(got, wanted, names, strict=False):
        assert_near(result, expected, f"gradient of {name}")


def test_work_follows_the_current_stream(device: torch.device) -> None:
    x = images(2, 32, 28, 28, torch.float32)
    weight = torch.randn(32, 1, 3, 3)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        on_device = x.to(device)
        torch.cuda._sleep(50_000_000)
        on_device.mul_(2)
        y, _ = OPS.mixconv(on_device, [weight.to(device)], [3], 1, "symmetric", None, None, "none", False)
    stream.synchronize()
    assert_near(y, mixconv_reference.mixconv(2 * x, [weight], [3], 1), "y")


def test_other_types_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"take float32, bfloat16 and float16, got torch\.float64"):
        OPS.bn_moments(torch.zeros(2, 3, 4, 4, dtype=torch.float64, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_take_the_kernels_that_are_asked_for(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rows.CUDA_VARIABLE, "1")
    rows._takes_cuda_kernels.cache_clear()
    x = images(2, 16, 9, 9, dtype).to(device).requires_grad_()
    weights = [torch.randn(8, 1, kernel, kernel, device=device) for kernel in (3, 5)]
    assert rows.backend(x, on_cuda=True) == "core"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = mixconv(x, weights, (3, 5))
        (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert {"greedynas::mixconv", "greedynas::mixconv_backward"} <= {event.name for event in profile.events()}
    rows._takes_cuda_kernels.cache_clear()
    assert_near(y, mixconv_reference(x.cpu(), [w.cpu() for w in weights], (3, 5)), "y")
    assert grad.shape == x.shape
