"""bn_act against the plain torch version, over layouts, dtypes, options and instruction sets."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.reference import bn_act as reference

ops = importlib.import_module("greedynas_fast.ops.bn_act")  # not the function of that name

ACTIVATIONS = ("identity", "relu", "hard_swish", "silu", "relu6")
RESIDUALS = (False, True)
# Float32 sums of some hundred values, each within a few units in the last place; bf16 has 8 bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
# Widths below, at, beside and above those of the vectors; rows that fill no group of rows, and one row.
SHAPES = (
    (2, 1, 3, 3),
    (2, 3, 5, 2),
    (3, 5, 4, 1),
    (2, 8, 7, 7),
    (1, 20, 9, 5),
    (2, 33, 3, 3),
    (5, 50, 1, 1),
    (2, 4, 1, 1),
)
BIG = ((2, 600, 12, 11), (3, 16, 45, 60))  # more than one chunk; without and with prefetching


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and workspace begin as not-a-number."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def filled(*arguments: Any, plain: Any = plain, **named: Any) -> Tensor:
            result: Tensor = plain(*arguments, **named)
            return result.fill_(torch.nan) if result.is_floating_point() else result

        monkeypatch.setattr(torch, name, filled)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "x": channels_last((randn(*shape) * 2 + 0.5).to(dtype)),
        "weight": randn(channels) + 1,
        "bias": randn(channels),
        "residual": channels_last(randn(*shape).to(dtype)),
        "grad": channels_last(randn(*shape).to(dtype)),
        "mean": randn(channels),
        "var": torch.rand(channels, generator=generator) + 0.5,
    }


def run(function: Any, given: dict[str, Tensor], dtype: torch.dtype | None, residual: bool, **options: Any) -> Any:
    """Result, gradients and running statistics."""
    tensors = {name: t.clone() if dtype is None else t.to(dtype) for name, t in given.items()}
    leaves = {name: tensors[name].detach().requires_grad_() for name in ("x", "weight", "bias", "residual")}
    y = function(
        leaves["x"],
        leaves["weight"],
        leaves["bias"],
        tensors["mean"],
        tensors["var"],
        residual=leaves["residual"] if residual else None,
        **options,
    )
    y.backward(tensors["grad"])
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return {"y": y, **gradients, "mean": tensors["mean"], "var": tensors["var"]}


def compare(actual: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    for name, want in expected.items():
        if want is None:
            assert actual[name] is None
            continue
        got = actual[name]
        assert got.dtype == (dtype if name in ("y", "x", "residual") else torch.float32)
        scale = want.abs().max().item() if want.numel() else 0.0
        error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
        assert error <= TOLERANCE[dtype] * max(1.0, scale), f"{name}: error {error} at scale {scale}"


def away_from_corners(given: dict[str, Tensor], residual: bool, training: bool) -> None:
    """Sets the gradient to 0 where bf16 might fall on the other side of a corner of the activation."""
    x = given["x"].double()
    z = reference.bn_act(
        x,
        given["weight"].double(),
        given["bias"].double(),
        given["mean"].double(),
        given["var"].double(),
        training=training,
        momentum=0.0,
    )
    z = z + given["residual"].double() if residual else z
    near = ((z.abs() - 3).abs() < 0.02) | (z.abs() < 0.02)
    given["grad"][near] = 0


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_matches_the_reference(dtype: torch.dtype, training: bool) -> None:
    cases = itertools.product(SHAPES, ACTIVATIONS, RESIDUALS)
    for seed, (shape, activation, residual) in enumerate(cases):
        check(shape, dtype, seed, residual, training=training, activation=activation)
    for shape in BIG:
        check(shape, dtype, 7, True, training=training, activation="hard_swish")


def check(shape: tuple[int, ...], dtype: torch.dtype, seed: int, residual: bool, **options: Any) -> None:
    given = inputs(shape, dtype, seed)
    away_from_corners(given, residual, options["training"])
    options |= {"momentum": 0.3, "eps": 1e-3}
    actual = run(ops.bn_act, given, None, residual, **options)
    assert shape[1] == 1 or actual["y"].is_contiguous(memory_format=torch.channels_last)
    compare(actual, run(reference.bn_act, given, torch.float64, residual, **options), dtype)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_written_past_the_caches(dtype: torch.dtype) -> None:
    shape = (2, 64, 130, 130) if dtype is torch.bfloat16 else (2, 64, 91, 91)
    for width in (64, 63):
        check((shape[0], width, *shape[2:]), dtype, 3, True, training=True, activation="relu")


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts(dtype: torch.dtype) -> None:
    given = inputs((3, 24, 6, 5), dtype)
    away_from_corners(given, True, True)
    options = {"training": True, "activation": "hard_swish"}
    expected = run(reference.bn_act, given, torch.float64, True, **options)

    def slice_of_channels(x: Tensor) -> Tensor:
        wide = channels_last(torch.full((3, 40, 6, 5), torch.nan, dtype=dtype))
        wide[:, 9:33] = x
        return wide[:, 9:33]

    def crop(x: Tensor) -> Tensor:
        wide = channels_last(torch.full((3, 24, 8, 9), torch.nan, dtype=dtype))
        wide[:, :, 1:7, 2:7] = x
        return wide[:, :, 1:7, 2:7]

    for layout in (Tensor.contiguous, slice_of_channels, crop, lambda x: x.flip(0).flip(0)):
        moved = {name: layout(given[name]) for name in ("x", "residual", "grad")}
        leaves = {name: moved[name].detach().requires_grad_() for name in ("x", "residual")}
        weight, bias = (given[name].clone().requires_grad_() for name in ("weight", "bias"))
        y = ops.bn_act(
            leaves["x"],
            weight,
            bias,
            given["mean"].clone(),
            given["var"].clone(),
            residual=leaves["residual"],
            **options,
        )
        y.backward(moved["grad"])
        actual = {"y": y, "x": leaves["x"].grad, "residual": leaves["residual"].grad, "weight": weight.grad}
        compare(actual, {name: expected[name] for name in actual}, dtype)


@pytest.mark.usefixtures("level")
def test_statistics_far_from_zero_and_outliers() -> None:
    for shape in ((4, 12, 31, 33), (2, 3, 20, 20)):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(shape, generator=generator) + 1000
        x[0, :, 0, 0] = -5e4  # the value that differences are taken from
        count, mean, squares = ops.bn_statistics(channels_last(x)).unbind()
        rows = x.double().transpose(0, 1).flatten(1)
        assert count.tolist() == [rows.shape[1]] * shape[1]
        error = (mean.double() - rows.mean(1)).abs() / rows.std(1)
        assert error.max() < 1e-4
        torch.testing.assert_close(squares.double() / count, rows.var(1, correction=0), rtol=1e-4, atol=0)
        x[0, :, 0, 0] = 1000
        got = ops.bn_statistics(channels_last(x))[2].double() / count
        rows = x.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(got, rows.var(1, correction=0), rtol=1e-4, atol=0)


@pytest.mark.usefixtures("level")
def test_scalar_oracle() -> None:
    given = inputs((2, 9, 3, 2), torch.float32)
    y = ops.bn_act(
        given["x"],
        given["weight"],
        given["bias"],
        None,
        None,
        training=True,
        activation="hard_swish",
        residual=given["residual"],
    )
    n, channels, height, width = y.shape
    places = list(itertools.product(range(n), range(height), range(width)))
    for c in range(channels):
        values = [given["x"][i, c, h, w].item() for i, h, w in places]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        for (i, h, w), value in zip(places, values, strict=True):
            z = (value - mean) / (variance + 1e-5) ** 0.5 * given["weight"][c].item() + given["bias"][c].item()
            z += given["residual"][i, c, h, w].item()
            expected = z * min(max(z + 3, 0), 6) / 6
            assert y[i, c, h, w].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_module(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm2d(12, momentum=0.2)
    ours = nn.BatchNorm2d(12, momentum=0.2)
    for training in (True, True, False):
        module.train(training)
        x = channels_last(torch.randn(3, 12, 5, 5).to(dtype))
        expected = module(x)
        got = ops.bn_act(
            x, ours.weight, ours.bias, ours.running_mean, ours.running_var, training=training, momentum=0.2
        )
        torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        torch.testing.assert_close(ours.running_mean, module.running_mean)
        torch.testing.assert_close(ours.running_var, module.running_var)


def test_optional_parts_and_dtypes() -> None:
    given = inputs((2, 8, 4, 4), torch.bfloat16)
    plain = ops.bn_act(given["x"], None, None, None, None, training=True)
    ones = ops.bn_act(given["x"], torch.ones(8), torch.zeros(8), None, None, training=True)
    assert torch.equal(plain, ones)
    weight = given["weight"].bfloat16().requires_grad_()
    mean, var = given["mean"].bfloat16(), given["var"].bfloat16()
    want_mean, want_var = mean.clone(), var.clone()
    ops.bn_act(given["x"], weight, None, mean, var, training=True).backward(given["grad"])
    reference.bn_act(given["x"].float(), None, None, want_mean.float(), want_var.float(), training=True)
    assert weight.grad is not None
    assert weight.grad.dtype is mean.dtype is torch.bfloat16
    x64 = given["x"].double().requires_grad_()
    assert ops.backend(x64) == "reference"
    assert ops.backend(given["x"]) == "core"
    assert torch.autograd.gradcheck(
        lambda x: ops.bn_act(x, given["weight"].double(), None, None, None, training=True, activation="hard_swish"),
        x64,
    )


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual"])
def test_one_gradient_alone(wanted: str) -> None:
    given = inputs((2, 10, 4, 3), torch.float32)
    for training in (True, False):
        options = {"training": training, "activation": "hard_swish"}
        expected = run(reference.bn_act, given, torch.float64, True, **options)
        leaves = {name: given[name].clone() for name in ("x", "weight", "bias", "residual")}
        leaves[wanted].requires_grad_()
        y = ops.bn_act(
            leaves["x"],
            leaves["weight"],
            leaves["bias"],
            given["mean"].clone(),
            given["var"].clone(),
            residual=leaves["residual"],
            **options,
        )
        y.backward(given["grad"])
        compare({wanted: leaves[wanted].grad}, {wanted: expected[wanted]}, torch.float32)


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (3, 6, 0, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_empty(shape: tuple[int, ...], training: bool) -> None:
    given = inputs(shape, torch.float32)
    for residual in RESIDUALS:
        options = {"training": training, "activation": "relu"}
        actual = run(ops.bn_act, given, None, residual, **options)
        compare(actual, run(reference.bn_act, given, torch.float32, residual, **options), torch.float32)
        assert torch.equal(actual["mean"], given["mean"])
    assert ops.bn_statistics(given["x"]).tolist() == [[0.0] * 6] * 3


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    given = inputs((6, 72, 27, 31), dtype)  # six chunks
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("GREEDYNAS_NUM_THREADS", threads)
        results.append(run(ops.bn_act, given, None, True, training=True, activation="hard_swish"))
    for result in results[1:]:
        assert all(torch.equal(result[name], value) for name, value in results[0].items())


@pytest.mark.usefixtures("level")
def test_not_a_number_goes_through() -> None:
    for dtype, activation in itertools.product((torch.float32, torch.bfloat16), ACTIVATIONS):
        x = channels_last(torch.ones(2, 16, 3, 3, dtype=dtype))
        x[1, 5, 2, 2] = torch.nan
        x[0, 9, 0, 0] = torch.inf
        y = ops.bn_act(x, None, None, torch.zeros(16), torch.ones(16), training=False, activation=activation)
        assert torch.equal(y.isnan().nonzero(), torch.tensor([[1, 5, 2, 2]]))
        assert y[0, 9, 0, 0] == (6.0 if activation == "relu6" else torch.inf)
        y = ops.bn_act(x, None, None, None, None, training=True, activation=activation)
        assert sorted(set(y.isnan().nonzero()[:, 1].tolist())) == [5, 9]


def test_given_statistics() -> None:
    given = inputs((6, 14, 4, 5), torch.float32)
    parts = [ops.bn_statistics(part) for part in given["x"].split((1, 3, 2))]
    joined = ops.combine_statistics(parts)
    whole = ops.bn_statistics(given["x"])
    torch.testing.assert_close(joined, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole, reference.bn_statistics(given["x"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(joined, ops.combine_statistics(torch.stack(parts)))
    empty = ops.bn_statistics(given["x"][:0])
    torch.testing.assert_close(ops.combine_statistics([empty, *parts]), joined)
    y = ops.bn_act(given["x"][:1], given["weight"], given["bias"], None, None, training=True, statistics=joined)
    expected = ops.bn_act(given["x"], given["weight"], given["bias"], None, None, training=True)[:1]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    options = {"training": True, "statistics": whole.double(), "activation": "relu"}
    expected64 = run(reference.bn_act, given, torch.float64, True, **options)
    compare(run(ops.bn_act, given, None, True, **options | {"statistics": whole}), expected64, torch.float32)


def test_operators_are_sound() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = inputs((2, 12, 5, 3), dtype)
        layer = (given["weight"], given["bias"], given["residual"], 1e-5, "relu")
        moments = torch.stack([given["mean"], given["var"]])
        needed = [True, True, False, True]
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (torch.ops.greedynas.bn_moments, (given["x"],)),
            (torch.ops.greedynas.bn_update_, (given["mean"], given["var"], moments, 30, 0.1)),
            (torch.ops.greedynas.bn_act_training, (given["x"], *layer)),
            (torch.ops.greedynas.bn_act_forward, (given["x"], moments, *layer)),
            (torch.ops.greedynas.bn_act_backward, (given["grad"], given["x"], moments, *layer, True, needed)),
        ]
        for operator, arguments in calls:
            torch.library.opcheck(operator.default, arguments)


@pytest.mark.slow
def test_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the poison
    given = inputs((2, 12, 5, 3), torch.float32)

    def block(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, **options: Any) -> Tensor:
        y = ops.bn_act(x * 1.0, weight, bias, mean, var, training=True, activation="hard_swish", **options)
        return ops.bn_act(y, None, None, mean, var, training=False)

    eager = run(block, given, None, True)
    compiled = run(torch.compile(block, fullgraph=True), given, None, True)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_counts_no_flops() -> None:
    given = inputs((2, 12, 5, 3), torch.float32)
    with FlopCounterMode(display=False) as counter:
        run(ops.bn_act, given, None, True, training=True)
    assert counter.get_total_flops() == 0


def test_bad_input() -> None:
    given = inputs((2, 12, 5, 3), torch.float32)
    good = {
        "x": given["x"], "weight": given["weight"], "bias": given["bias"],
        "running_mean": given["mean"], "running_var": given["var"], "training": True,
    }  # fmt: skip
    cases: list[tuple[dict[str, Any], str]] = [
        ({"x": given["x"][0]}, r"bn_act: x: expected a floating \[N, C, H, W\], got torch.float32 \[12, 5, 3\]"),
        ({"x": given["x"].int()}, "bn_act: x: expected a floating"),
        ({"weight": torch.ones(11)}, r"bn_act: weight: expected floating \[12\], got torch.float32 \[11\]"),
        ({"bias": torch.ones(12, dtype=torch.int32)}, "bn_act: bias: expected floating"),
        ({"running_var": torch.ones(2)}, "bn_act: running_var: expected floating"),
        ({"running_var": None}, "expected both running_mean and running_var or neither"),
        ({"running_mean": None, "running_var": None, "training": False}, "running_mean: expected one in evaluation"),
        ({"x": torch.ones(1, 12, 1, 1)}, "expected more than one value a channel in training"),
        ({"activation": "gelu"}, "activation: expected identity, relu, hard_swish, silu or relu6, got 'gelu'"),
        ({"residual": given["x"][:1]}, r"residual: expected torch.float32 \[2, 12, 5, 3\] like x, got"),
        ({"residual": given["x"].bfloat16()}, "residual: expected torch.float32"),
        ({"statistics": torch.ones(2, 12)}, r"statistics: expected \[3, 12\], got \[2, 12\]"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            ops.bn_act(**(good | change))
    with pytest.raises(InputError, match="bn_act: x: expected a floating"):
        ops.bn_statistics(torch.ones(3))
    for parts in ([], [torch.ones(3, 2), torch.ones(3, 1)], [torch.ones(2, 2)]):
        with pytest.raises(InputError, match="combine_statistics: expected one or more parts"):
            ops.combine_statistics(parts)
