"""squeeze_excite against the plain torch version, over layouts, dtypes, options and instruction sets."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.reference import squeeze_excite as reference

ops = importlib.import_module("greedynas_fast.ops.squeeze_excite")  # not the function of that name

# Float32 sums of some hundred values; bf16 has 8 bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SHAPES = ((2, 1, 3, 3), (2, 3, 5, 2), (3, 6, 4, 1), (2, 8, 7, 7), (1, 20, 9, 5), (5, 50, 1, 1), (2, 600, 13, 11))
ACTIVATIONS = ("identity", "relu", "hard_swish", "silu", "relu6")
NAMES = ("x", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias")


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


def inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, convolutions: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels, reduced = shape[1], max(shape[1] // 3, 1)
    tail = (1, 1) if convolutions else ()

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "x": channels_last(randn(*shape).to(dtype)),
        "reduce_weight": randn(reduced, channels, *tail) / channels**0.5,
        "reduce_bias": randn(reduced),
        "expand_weight": randn(channels, reduced, *tail) / reduced**0.5,
        "expand_bias": randn(channels),
        "scale": randn(channels) + 1,
        "shift": randn(channels),
        "grad": channels_last(randn(*shape).to(dtype)),
    }


def run(
    function: Any, given: dict[str, Tensor], dtype: torch.dtype | None, prologue: str | None, **options: Any
) -> Any:
    """Result and gradients."""
    tensors = given if dtype is None else {name: value.to(dtype) for name, value in given.items()}
    leaves = {name: tensors[name].detach().requires_grad_() for name in (*NAMES, "scale", "shift")}
    norm_act = None if prologue is None else (leaves["scale"], leaves["shift"], prologue)
    y = function(*(leaves[name] for name in NAMES), norm_act=norm_act, **options)
    y.backward(tensors["grad"])
    return {"y": y, **{name: leaf.grad for name, leaf in leaves.items()}}


def compare(actual: dict[str, Any], expected: dict[str, Any], dtype: torch.dtype) -> None:
    for name, want in expected.items():
        if want is None:
            assert actual[name] is None
            continue
        got = actual[name]
        assert got.shape == want.shape
        assert got.dtype == (dtype if name in ("y", "x") else torch.float32)
        if want.numel():
            error = (got.double() - want.double()).abs().max().item()
            scale = max(1.0, want.abs().max().item())
            assert error <= TOLERANCE[dtype] * scale, f"{name}: error {error} at scale {scale}"


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_the_reference(dtype: torch.dtype) -> None:
    cases = itertools.product(SHAPES, ACTIVATIONS, (None, *ACTIVATIONS))
    for seed, (shape, activation, prologue) in enumerate(cases):
        given = inputs(shape, dtype, seed, convolutions=seed % 2 == 0)
        options = {"activation": activation, "gate": ("hard_sigmoid", "sigmoid")[seed % 3 == 0]}
        actual = run(ops.squeeze_excite, given, None, prologue, **options)
        compare(actual, run(reference.squeeze_excite, given, torch.float64, prologue, **options), dtype)
        assert shape[1] == 1 or actual["y"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_written_past_the_caches(dtype: torch.dtype) -> None:
    for width in (64, 63):
        given = inputs((3, width, 79, 80) if dtype is torch.float32 else (3, width, 110, 111), dtype)
        expected = run(reference.squeeze_excite, given, torch.float64, None)
        compare(run(ops.squeeze_excite, given, None, None), expected, dtype)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts(dtype: torch.dtype) -> None:
    given = inputs((3, 24, 6, 5), dtype)
    expected = run(reference.squeeze_excite, given, torch.float64, "relu")

    def slice_of_channels(x: Tensor) -> Tensor:
        wide = channels_last(torch.full((3, 40, 6, 5), torch.nan, dtype=dtype))
        wide[:, 9:33] = x
        return wide[:, 9:33]

    def crop(x: Tensor) -> Tensor:
        wide = channels_last(torch.full((3, 24, 8, 9), torch.nan, dtype=dtype))
        wide[:, :, 1:7, 2:7] = x
        return wide[:, :, 1:7, 2:7]

    for layout in (Tensor.contiguous, slice_of_channels, crop):
        moved = given | {"x": layout(given["x"]), "grad": layout(given["grad"])}
        compare(run(ops.squeeze_excite, moved, None, "relu"), expected, dtype)


@pytest.mark.usefixtures("level")
def test_scalar_oracle() -> None:
    given = inputs((2, 5, 3, 2), torch.float32)
    y = ops.squeeze_excite(*(given[name] for name in NAMES), gate="sigmoid")
    lists = {name: value.tolist() for name, value in given.items()}
    for n in range(2):
        image = lists["x"][n]
        means = [sum(value for row in plane for value in row) / 6 for plane in image]
        hidden = [
            max(sum(w * m for w, m in zip(weights, means, strict=True)) + bias, 0.0)
            for weights, bias in zip(lists["reduce_weight"], lists["reduce_bias"], strict=True)
        ]
        for c, (weights, bias) in enumerate(zip(lists["expand_weight"], lists["expand_bias"], strict=True)):
            gate = 1 / (1 + math.exp(-sum(w * h for w, h in zip(weights, hidden, strict=True)) - bias))
            for h, w in itertools.product(range(3), range(2)):
                assert y[n, c, h, w].item() == pytest.approx(gate * image[c][h][w], abs=1e-5)


def test_other_dtypes_and_one_gradient_alone() -> None:
    given = inputs((2, 6, 3, 3), torch.bfloat16)
    weights = [given[name].bfloat16() for name in NAMES[1:]]
    weights[2].requires_grad_()
    ops.squeeze_excite(given["x"], *weights).backward(given["grad"])
    assert weights[2].grad is not None
    assert weights[2].grad.dtype is torch.bfloat16
    double = [given[name].double().requires_grad_() for name in (*NAMES, "scale", "shift")]
    assert ops.backend(double[0]) == "reference"
    assert ops.backend(given["x"]) == "core"
    assert torch.autograd.gradcheck(
        lambda *t: ops.squeeze_excite(*t[:5], norm_act=(t[5], t[6], "hard_swish"), gate="sigmoid"), double
    )


def test_empty_batch() -> None:
    given = inputs((0, 6, 4, 4), torch.float32)
    for prologue in (None, "relu"):
        actual = run(ops.squeeze_excite, given, None, prologue)
        compare(actual, run(reference.squeeze_excite, given, torch.float32, prologue), torch.float32)
        assert not actual["reduce_weight"].any()


@pytest.mark.usefixtures("level")
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((3, 72, 41, 40), (40, 16, 7, 7)):
        given = inputs(shape, torch.float32)
        results = []
        for threads in ("1", "2", "5"):
            monkeypatch.setenv("GREEDYNAS_NUM_THREADS", threads)
            results.append(run(ops.squeeze_excite, given, None, "hard_swish"))
        for result in results[1:]:
            assert all(torch.equal(result[name], value) for name, value in results[0].items())


def test_operators_are_sound() -> None:
    given = inputs((2, 12, 5, 3), torch.float32, convolutions=True)
    parameters = [given[name] for name in NAMES[1:]]
    for norm in ((None, None, ""), (given["scale"], given["shift"], "relu")):
        layer = (*parameters, *norm[:2], "relu", "sigmoid", norm[2])
        torch.library.opcheck(torch.ops.greedynas.squeeze_excite.default, (given["x"], *layer))
        kept = torch.ops.greedynas.squeeze_excite(given["x"], *layer)[1:]
        arguments = (given["grad"], given["x"], *kept, *layer)
        torch.library.opcheck(torch.ops.greedynas.squeeze_excite_backward.default, arguments)


@pytest.mark.slow
def test_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # of the poison
    given = inputs((2, 12, 5, 3), torch.float32)
    eager = run(ops.squeeze_excite, given, None, "hard_swish")
    compiled = run(torch.compile(ops.squeeze_excite, fullgraph=True), given, None, "hard_swish")
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_flops_are_those_of_the_products() -> None:
    given = inputs((2, 12, 5, 3), torch.float32)
    counts = []
    for function in (ops.squeeze_excite, reference.squeeze_excite):
        with FlopCounterMode(display=False) as counter:
            run(function, given, None, None)
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 2 * 2 * 12 * 4] * 2


def test_bad_input() -> None:
    given = inputs((2, 12, 5, 3), torch.float32)
    good: dict[str, Any] = {name: given[name] for name in NAMES}
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"x": given["x"][0]},
            r"squeeze_excite: x: expected a floating \[N, C, H, W\], got torch.float32 \[12, 5, 3\]",
        ),
        ({"x": torch.ones(2, 12, 0, 3)}, "x: expected at least one pixel"),
        ({"reduce_weight": torch.ones(4, 11)}, r"reduce_weight: expected \[4, 12\] or \[4, 12, 1, 1\], got \[4, 11\]"),
        ({"expand_weight": torch.ones(12, 4, 3, 3)}, r"expand_weight: expected \[12, 4\] or"),
        ({"reduce_bias": torch.ones(5)}, r"reduce_bias: expected \[4\], got \[5\]"),
        ({"expand_bias": torch.ones(4)}, r"expand_bias: expected \[12\], got \[4\]"),
        ({"norm_act": (torch.ones(3), torch.ones(12), "relu")}, r"norm_act scale: expected \[12\], got \[3\]"),
        ({"norm_act": (torch.ones(12), torch.ones(12), "gelu")}, "norm_act activation: expected one of identity, relu"),
        ({"activation": "gelu"}, "activation: expected one of identity, relu, hard_swish, silu, relu6, got 'gelu'"),
        ({"gate": "tanh"}, "gate: expected one of hard_sigmoid, sigmoid, got 'tanh'"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            ops.squeeze_excite(**(good | change))
