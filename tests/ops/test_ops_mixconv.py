"""mixconv against its reference in float64 and a scalar oracle: values, every gradient, layouts, levels, tracing."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import conv2d_same
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.ops.mixconv import backend, mixconv
from greedynas_fast.reference.mixconv import mixconv as reference

ops_mixconv = importlib.import_module("greedynas_fast.ops.mixconv")  # not the function of that name

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}  # of the largest value; 2 ** -8 rounds a bf16 sum
LEVELS = ("portable", "avx2", "avx512", "avx512_bf16")


def split(channels: int, groups: int) -> list[int]:
    part = -(-channels // groups)
    return [part] * (groups - 1) + [channels - part * (groups - 1)]


class Case:
    """Random inputs of a call, in the dtype under test and the same values in float64."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        kernels: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        stride: int = 1,
        activation: str | None = None,
        stats: bool = False,
        weight_dtype: torch.dtype = torch.float32,
        padding: str = "symmetric",
    ) -> None:
        torch.manual_seed(0)
        channels = shape[1]
        self.kernels, self.stride, self.stats, self.activation = kernels, stride, stats, activation
        self.padding = padding
        x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
        pairs = zip(split(channels, len(kernels)), kernels, strict=True)
        weights = [torch.randn(c, 1, k, k).to(weight_dtype) for c, k in pairs]
        norm = [] if activation is None else [torch.randn(channels), torch.randn(channels)]
        self.inputs = [value.requires_grad_() for value in (x, *weights, *norm)]
        self.doubles = [value.detach().double().requires_grad_() for value in self.inputs]

    def run(self, function: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        groups = len(self.kernels)
        norm = None if self.activation is None else (*inputs[1 + groups :], self.activation)
        layer = (inputs[1 : 1 + groups], self.kernels, self.stride, norm)
        result = function(inputs[0], *layer, want_stats=self.stats, padding=self.padding)
        return list(result) if self.stats else [result]

    def run_with_grads(self, function: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        outputs = self.run(function, inputs)
        torch.manual_seed(1)
        wanted = [torch.randn(output.shape) for output in outputs]
        if self.stats:
            wanted[1] *= 0.1
        grads = torch.autograd.grad(outputs, inputs, [g.to(o.dtype) for g, o in zip(wanted, outputs, strict=True)])
        return [*(output.detach() for output in outputs), *grads]

    def check(self, tolerance: float | None = None) -> None:
        dtype = self.inputs[0].dtype
        found = self.run_with_grads(mixconv, self.inputs)
        expected = self.run_with_grads(reference, self.doubles)
        for index, (got, want) in enumerate(zip(found, expected, strict=True)):
            assert got.shape == want.shape, index
            if want.numel():
                limit = (tolerance or TOLERANCE[dtype]) * (1 + float(want.abs().max()))
                error = float((got.double() - want).abs().max())
                assert error <= limit, (index, error, limit)  # false for NaN too


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory that the operation allocates is NaN at first."""

    class PoisonedTorch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            result = torch.empty(*args, **kwargs)
            return result.fill_(255) if result.dtype == torch.uint8 else result.fill_(torch.nan)

        @staticmethod
        def empty_like(*args: Any, **kwargs: Any) -> torch.Tensor:
            return torch.empty_like(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(ops_mixconv, "torch", PoisonedTorch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "padding"), [(1, "symmetric"), (2, "symmetric"), (2, "same_upper")])
def test_values_and_gradients(dtype: torch.dtype, stride: int, padding: str) -> None:
    shapes = ((2, 37, 9, 12), (0, 20, 5, 5), (3, 5, 1, 1), (1, 20, 13, 11), (2, 7, 2, 31))
    all_kernels = ((3,), (3, 5, 7), (9, 11), (5, 1))
    for shape, kernels, activation, stats in itertools.product(
        shapes, all_kernels, (None, "identity", "relu", "hard_swish", "silu", "relu6"), (False, True)
    ):
        Case(shape, kernels, dtype, stride, activation, stats, padding=padding).check()


@pytest.mark.parametrize("level", LEVELS)
def test_each_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not _core.cpu_isa_available(level):
        pytest.skip(f"this machine or build has no {level}")
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", level)
    for dtype, stride in itertools.product((torch.float32, torch.bfloat16), (1, 2)):
        Case((2, 37, 9, 12), (3, 5, 7), dtype, stride, "hard_swish", True).check()
        Case((1, 35, 8, 15), (9, 11, 1), dtype, stride).check()
        if stride == 2:
            Case((2, 37, 8, 12), (3, 5, 7), dtype, 2, "hard_swish", True, padding="same_upper").check()
            Case((1, 35, 8, 15), (9, 11, 1), dtype, 2, padding="same_upper").check()
        for width in (7, 12, 15):  # 3 x 3 without an activation: whole tiles go straight into the output, the rest not
            Case((2, 37, 3, width), (3,), dtype, stride, None, width == 12).check()
    # All in bf16, which the last level multiplies in pairs.
    for stats, kernels in itertools.product((False, True), ((3, 5, 7), (9, 11, 1))):
        Case((2, 101, 9, 16), kernels, torch.bfloat16, 1, None, stats, torch.bfloat16).check()
    # Several blocks a group, the last one narrower and not a multiple of any vector.
    Case((3, 413, 5, 6), (3,), torch.float32, 1, "hard_swish", True).check()
    Case((2, 261, 3, 40), (7, 3), torch.float32, 2, "silu", True).check()


@pytest.mark.parametrize("stats", [False, True])
def test_large_results(stats: bool) -> None:
    """So large that some processors write them past the caches; channels of the first two in whole cache lines."""
    for channels, kernels in ((160, (3, 5)), (96, (7,)), (100, (5,))):
        Case((8, channels, 24, 28), kernels, stats=stats).check()


def test_a_group_without_channels() -> None:
    """As without the group."""
    case = Case((2, 4, 5, 6), (3, 5))
    x, *weights = case.inputs
    nothing = torch.empty(0, 1, 7, 7)
    results = []
    for own, kernels in ((weights, (3, 5)), ([nothing, *weights], (7, 3, 5)), ([*weights, nothing], (3, 5, 7))):
        y = mixconv(x, own, kernels, 1)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, *weights))])
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_bf16_weights() -> None:
    for stride in (1, 2):
        Case((2, 37, 9, 12), (3, 5, 7), torch.bfloat16, stride, "relu", True, torch.bfloat16).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_run_the_reference(dtype: torch.dtype) -> None:
    case = Case((1, 6, 5, 4), (3, 5), dtype, 1, "relu", True)
    assert backend(case.inputs[0]) == "reference"
    assert backend(torch.zeros(1)) == backend(torch.zeros(1, dtype=torch.bfloat16)) == "core"
    case.check(2e-3 if dtype == torch.float16 else 1e-6)


def test_gradcheck() -> None:
    case = Case((1, 5, 4, 3), (3, 5), torch.float64, 2, "hard_swish", True)
    assert torch.autograd.gradcheck(lambda *inputs: tuple(case.run(mixconv, list(inputs))), case.doubles)
    # The core, in float32: outputs are quadratic in each input, so wide differences are exact but for rounding.
    single = Case((1, 5, 4, 3), (3, 5), torch.float32, 2, "identity", True)
    options: dict[str, Any] = {"eps": 1e-1, "atol": 1e-3, "rtol": 1e-3}

    def core(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.double() for output in single.run(mixconv, [value.float() for value in inputs]))

    assert torch.autograd.gradcheck(core, single.doubles, **options)


def test_layouts() -> None:
    case = Case((2, 12, 5, 6), (3, 5))
    expected = case.run_with_grads(reference, case.doubles)
    x, *weights = (value.detach() for value in case.inputs)
    wide = torch.full((2, 40, 5, 6), torch.nan).contiguous(memory_format=torch.channels_last)
    wide[:, 9:21] = x
    for variant in (x.contiguous(), wide[:, 9:21], x.transpose(2, 3).contiguous().transpose(2, 3)):
        inputs = [variant.detach().requires_grad_(), *(w.requires_grad_() for w in weights)]
        for got, want in zip(case.run_with_grads(mixconv, inputs), expected, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-4)
    x = case.inputs[0]
    y = mixconv(x, case.inputs[1:], (3, 5))
    assert y.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(y.sum(), x)  # an expanded gradient of y
    (want,) = torch.autograd.grad(reference(x, case.inputs[1:], (3, 5)).sum(), x)  # type: ignore[union-attr]
    torch.testing.assert_close(grad, want, rtol=0, atol=1e-4)


def test_memory_beyond_the_input_is_left_alone() -> None:
    values = torch.full((2 * 3 * 4 * 40,), torch.nan).view(2, 3, 4, 40)
    inner = values[:, :, :, 37:].permute(0, 3, 1, 2)  # the last three channels: the end of the storage
    inner.copy_(torch.randn(2, 3, 3, 4))
    weight = torch.randn(3, 1, 3, 3)
    torch.testing.assert_close(mixconv(inner, [weight], (3,)), reference(inner, [weight], (3,)))


def test_scalar_oracle() -> None:
    case = Case((2, 5, 4, 6), (3, 5), stride=2)
    x, first, second = (value.detach() for value in case.inputs)
    y = mixconv(x, [first, second], (3, 5), 2)
    for n, c, i, j in itertools.product(range(2), range(5), range(2), range(3)):
        weight = first[c, 0] if c < 3 else second[c - 3, 0]
        kernel = len(weight)
        total = 0.0
        for u, v in itertools.product(range(kernel), repeat=2):
            row, column = 2 * i + u - kernel // 2, 2 * j + v - kernel // 2
            if 0 <= row < 4 and 0 <= column < 6:
                total += float(weight[u, v]) * float(x[n, c, row, column])
        assert float(y[n, c, i, j]) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("size", [(1, 2), (2, 3), (3, 4), (6, 9), (8, 14)])
@pytest.mark.parametrize("kernel", [1, 3, 5, 11])
def test_padding_of_tensorflow(kernel: int, size: tuple[int, int]) -> None:
    """As timm pads for the weights that come from there."""
    x, weight = torch.randn(2, 5, *size), torch.randn(5, 1, kernel, kernel)
    for stride in (1, 2):
        expected = conv2d_same(x, weight, stride=(stride, stride), groups=5)
        for function in (mixconv, reference):
            y = function(x, [weight], (kernel,), stride, padding="same_upper")
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def test_only_the_wanted_gradients() -> None:
    case = Case((1, 20, 6, 6), (3, 5), activation="relu")
    y = case.run(mixconv, case.inputs)[0]
    everything = torch.autograd.grad(y.square().sum(), case.inputs)
    for index in range(len(case.inputs)):
        inputs = [value.detach().requires_grad_(i == index) for i, value in enumerate(case.inputs)]
        y = case.run(mixconv, inputs)[0]
        (grad,) = torch.autograd.grad(y.square().sum(), [inputs[index]])
        torch.testing.assert_close(grad, everything[index], rtol=0, atol=0)


def test_gradient_of_the_statistics_alone() -> None:
    case = Case((2, 9, 5, 5), (3,), stats=True)
    found = torch.autograd.grad(case.run(mixconv, case.inputs)[1].sum(), case.inputs)
    expected = torch.autograd.grad(case.run(reference, case.doubles)[1].sum(), case.doubles)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_second_derivatives_are_refused() -> None:
    case = Case((1, 4, 5, 5), (3,))
    (grad,) = torch.autograd.grad(case.run(mixconv, case.inputs)[0].sum(), case.inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for threads in ("1", "3", "8"):
        monkeypatch.setenv("GREEDYNAS_NUM_THREADS", threads)
        case = Case((9, 37, 20, 19), (3, 5, 7), activation="hard_swish", stats=True)
        results.append(case.run_with_grads(mixconv, case.inputs))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert torch.equal(got, want)


def test_opcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_mixconv, "torch", torch)
    x, *weights, scale, shift = (
        value.detach() for value in Case((2, 9, 5, 4), (3, 5), stride=2, activation="relu").inputs
    )
    forward = (x, weights, (3, 5), 2, "same_upper", scale, shift, "relu", True)
    torch.library.opcheck(torch.ops.greedynas.mixconv, forward)
    torch.library.opcheck(torch.ops.greedynas.mixconv, (x, weights, (3, 5), 1, "symmetric", None, None, "none", False))
    y, stats = torch.ops.greedynas.mixconv(*forward)
    backward = (torch.ones_like(y), torch.ones_like(stats), y, x, weights, *forward[2:8])
    torch.library.opcheck(torch.ops.greedynas.mixconv_backward, (*backward, [True, True, True]))
    torch.library.opcheck(torch.ops.greedynas.mixconv_backward, (*backward, [False, False, True]))


def test_compile_traces_it_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_mixconv, "torch", torch)
    case = Case((2, 9, 5, 4), (3, 5), stride=2, activation="relu", stats=True, padding="same_upper")
    expected = case.run_with_grads(mixconv, case.inputs)
    found = case.run_with_grads(torch.compile(mixconv, fullgraph=True, backend="aot_eager"), case.inputs)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_flops() -> None:
    case = Case((2, 10, 5, 4), (3, 5), stride=2)
    counts = []
    for function in (mixconv, reference):
        with FlopCounterMode(display=False) as counter:
            y = case.run(function, case.inputs)[0]
        counts.append(counter.get_total_flops())
        if function is mixconv:  # torch counts the weight gradient of grouped convolutions as if there were no groups
            with FlopCounterMode(display=False) as counter:
                y.sum().backward()
            assert counter.get_total_flops() == 2 * counts[0]
    assert counts == [2 * 2 * 3 * 2 * (5 * 9 + 5 * 25)] * 2


def test_bad_input() -> None:
    x = torch.randn(1, 8, 5, 5)
    first, second = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 5, 5)

    def message(*args: Any, **kwargs: Any) -> str:
        with pytest.raises(InputError) as raised:
            mixconv(*args, **kwargs)
        return str(raised.value)

    ones = torch.ones(8)
    assert "weight 1 has 4 channels, its group of x has 2" in message(x[:, :6], [first, second], (3, 5))
    assert "a weight a kernel size, got 2 for 1" in message(x, [first, second], (3,))
    assert "weight 0 must be [C_g, 1, 5, 5], got [4, 1, 3, 3]" in message(x, [first, second], (5, 3))
    assert "kernel size 0 must be odd and 1 to 11, got 4" in message(x, [first], (4,))
    assert "stride must be 1 or 2, got 3" in message(x, [first, second], (3, 5), 3)
    assert "symmetric or same_upper, got 'valid'" in message(x, [first, second], (3, 5), padding="valid")
    assert "x must be floating point" in message(x.int(), [first, second], (3, 5))
    assert "weight 1 is torch.float64" in message(x, [first, second.double()], (3, 5))
    assert "must have channels, rows and columns" in message(x[:, :, :0], [first, second], (3, 5))
    assert "got 'gelu'" in message(x, [first, second], (3, 5), norm_act=(ones, ones, "gelu"))
    assert "shift must be floating point [8]" in message(x, [first, second], (3, 5), norm_act=(ones, ones[:3], "relu"))
    assert "weight 0 is on meta" in message(x, [first.to("meta"), second], (3, 5))


def test_slope_of_hard_swish_at_its_corners() -> None:
    """As torch and batch norm have it: 0 up to -3, 1 from 3 on."""
    x = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(1, 8, 1, 2).clone().requires_grad_()
    norm = (torch.ones(8), torch.zeros(8), "hard_swish")
    result = mixconv(x, [torch.ones(8, 1, 1, 1)], (1,), 1, norm)
    assert isinstance(result, torch.Tensor)
    result.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[0, :, 0], torch.tensor([0.0, 1.0]).expand(8, 2))
