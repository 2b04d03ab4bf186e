"""inverted_residual against its reference in float64: values, every gradient, moments; its operators; bad input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.ops import inverted_residual_core as core
from greedynas_fast.ops.inverted_residual import Gate, Norm, backend, inverted_residual
from greedynas_fast.reference.inverted_residual import inverted_residual as reference

TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 0.15}  # of the largest value; bf16 goes through three norms

Tensors = dict[str, Any]


@pytest.fixture(autouse=True, params=["z1 in memory", "z1 in the caches"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are expanded in both ways, however large they are."""
    in_caches = request.param == "z1 in the caches"
    monkeypatch.setattr(
        core, "expands_in_caches", lambda _, expand, keep, bf16=False: in_caches and not (expand is None or bf16)
    )


def make(
    channels: tuple[int, int, int] = (8, 24, 8),
    kernels: tuple[int, ...] = (3,),
    size: tuple[int, int, int] = (3, 6, 5),
    *,
    expands: bool = True,
    gated: bool = False,
    moments: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """Random tensors of a block, by name; what is absent is None."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inner, middle, outer = channels
    part = -(-middle // len(kernels))
    widths = [part] * (len(kernels) - 1) + [middle - part * (len(kernels) - 1)]
    n, height, width = size
    tensors: Tensors = {
        "x": randn(n, inner, height, width).to(dtype).contiguous(memory_format=torch.channels_last),
        "pw": 0.3 * randn(middle, inner, 1, 1) if expands else None,
        "pwl": 0.3 * randn(outer, middle, 1, 1),
    }
    for index, c in enumerate((middle, middle, outer), start=1):
        tensors[f"gamma{index}"], tensors[f"beta{index}"] = 1 + 0.2 * randn(c), 0.2 * randn(c)
        tensors[f"moments{index}"] = torch.stack((0.1 * randn(c), 1 + randn(c).abs())) if moments else None
    for index, (c, k) in enumerate(zip(widths, kernels, strict=True)):
        tensors[f"dw{index}"] = randn(c, 1, k, k) / k
    for index, shape in enumerate(((4, middle), (4,), (middle, 4), (middle,))):
        tensors[f"se{index}"] = 0.5 * randn(*shape) if gated else None
    return tensors


def call(function: Any, t: Tensors, **options: Any) -> tuple[Tensor, list[Tensor]]:
    norms = [Norm(t[f"gamma{i}"], t[f"beta{i}"], 1e-3 * i, t[f"moments{i}"]) for i in (1, 2, 3)]
    weights = [t[name] for name in t if name.startswith("dw")]
    gate = None if t["se0"] is None else Gate(*(t[f"se{i}"] for i in range(4)), "relu", "hard_sigmoid")
    expand = None if t["pw"] is None else (t["pw"], norms[0])
    result: tuple[Tensor, list[Tensor]] = function(
        t["x"], expand, (weights, norms[1]), (t["pwl"], norms[2]), gate, **options
    )
    return result


def with_gradients(function: Any, t: Tensors, dtype: torch.dtype | None, **options: Any) -> dict[str, Tensor]:
    """Result, moments and gradients of everything but moments."""
    leaves = {name: value.detach().clone().to(dtype or value.dtype) for name, value in t.items() if value is not None}
    wanted = [name for name in leaves if not name.startswith("moments")]
    for name in wanted:
        leaves[name].requires_grad_()
    y, moments = call(function, {**t, **leaves}, **options)
    torch.manual_seed(1)
    weight = torch.randn(y.shape)
    (y * weight.to(y.dtype)).sum().backward()
    gradients = {f"grad {name}": leaves[name].grad for name in wanted if leaves[name].grad is not None}
    return {"y": y.detach(), **{f"moments {i}": m for i, m in enumerate(moments)}, **gradients}


def check(t: Tensors, dtype: torch.dtype = torch.float32, **options: Any) -> None:
    assert backend(t["x"]) == "core"
    found = with_gradients(inverted_residual, t, None, **options)
    expected = with_gradients(reference, t, torch.float64, **options)
    assert found.keys() == expected.keys()
    assert found["y"].dtype == found["grad x"].dtype == dtype
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    for name, want in expected.items():
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(found[name].double(), want, rtol=0, atol=TOLERANCE[dtype] * scale, msg=name)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("expands", [False, True])
def test_matches_the_reference(expands: bool, gated: bool, moments: bool) -> None:
    for kernels, stride, activation in itertools.product(
        ((3,), (3, 5, 7)), (1, 2), ("relu", "hard_swish", "silu", "relu6")
    ):
        channels = (8, 24, 8) if expands else (24, 24, 24)
        t = make(channels, kernels, expands=expands, gated=gated, moments=moments)
        check(t, stride=stride, activation=activation, residual=stride == 1)
        if stride == 2:
            check(t, stride=stride, padding="same_upper", activation=activation)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("channels", [(1, 3, 2), (3, 17, 5), (5, 20, 12), (16, 96, 24), (25, 410, 200)])
def test_odd_numbers_of_channels(channels: tuple[int, int, int]) -> None:
    """Vectors that overlap at the end of a row, in passes that work in place."""
    check(make(channels, (5,), (3, 5, 3), gated=True))
    check(make(channels, (5,), (40, 5, 3)))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("stride", [1, 2])
def test_several_chunks_of_images(stride: int) -> None:
    """Images of so many pixels that each is a piece of work; a height that is no multiple of the rows made together."""
    t = make((5, 50, 5), (3, 7), (5, 34, 40), gated=True)
    check(t, stride=stride, residual=stride == 1)
    check(t, stride=stride, padding="same_upper")


def test_groups() -> None:
    """Of the two 1x1 convolutions: as many as the widths of their weights say."""
    t = make((12, 48, 12), (3, 5), (3, 40, 41), gated=True)
    grouped = {**t, "pw": t["pw"][:, :6].clone(), "pwl": t["pwl"][:, :16].clone()}
    check(grouped, residual=True)
    with torch.no_grad():
        y, moments = call(inverted_residual, grouped)
        want, of_want = call(reference, grouped)
    for found, wanted in ((y, want), *zip(moments, of_want, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="expand"):
        call(inverted_residual, {**t, "pw": t["pw"][:, :5]})


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("channels", [(8, 24, 8), (16, 96, 16), (7, 41, 7)])
def test_bf16(channels: tuple[int, int, int], gated: bool) -> None:
    """With odd numbers of channels products are not those of pairs."""
    t = make(channels, (3, 5), (8, 9, 9), gated=gated, dtype=torch.bfloat16)
    check(t, torch.bfloat16, residual=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("expands", [False, True])
def test_bf16_blocks(expands: bool, moments: bool, stride: int) -> None:
    channels = (8, 24, 8) if expands else (24, 24, 24)
    t = make(channels, (3, 7), (8, 9, 9), expands=expands, gated=True, moments=moments, dtype=torch.bfloat16)
    check(t, torch.bfloat16, stride=stride, residual=stride == 1)


def test_layouts() -> None:
    t = make()
    expected = with_gradients(inverted_residual, t, None, residual=True)
    wide = torch.zeros(3, 20, 6, 5).contiguous(memory_format=torch.channels_last)
    wide[:, 4:12] = t["x"]
    for x in (t["x"].contiguous(), wide[:, 4:12]):
        y, _ = call(inverted_residual, {**t, "x": x}, residual=True)
        assert torch.equal(y, expected["y"])


def test_without_gradients() -> None:
    t = make(gated=True, moments=True)
    with torch.no_grad():
        y, _ = call(inverted_residual, t)
    assert not y.requires_grad
    torch.testing.assert_close(y, call(reference, t)[0], rtol=0, atol=1e-5)


def test_empty_batch_and_single_pixels() -> None:
    t = make(size=(0, 4, 4), moments=True)
    assert call(inverted_residual, t, stride=2)[0].shape == (0, 8, 2, 2)
    found = with_gradients(inverted_residual, make(size=(0, 4, 4), gated=True), None)
    assert len(found) == 1 + 3 + 1 + 2 + 6 + 1 + 4
    assert not any(value.any() for value in found.values())
    check(make(kernels=(3, 11), size=(5, 1, 1)))


def test_threads_do_not_matter(thread_counts: Iterator[int]) -> None:
    t = make((16, 96, 16), (3, 5), (8, 14, 14), gated=True)
    results = [with_gradients(inverted_residual, t, None, residual=True) for _ in thread_counts]
    assert all(torch.equal(value, other[name]) for other in results[1:] for name, value in results[0].items())


def test_operators() -> None:
    t = make(size=(3, 4, 4))
    x = torch.randn(3, 24, 4, 4).contiguous(memory_format=torch.channels_last)
    moments = torch.ops.greedynas.bn_moments(x)
    torch.library.opcheck(torch.ops.greedynas.bn_affine.default, (moments, t["gamma1"], t["beta1"], 1e-5))
    affine = torch.ops.greedynas.bn_affine(moments, t["gamma1"], t["beta1"], 1e-5)
    torch.library.opcheck(
        torch.ops.greedynas.bn_through_moments_.default,
        (torch.randn_like(x), x, moments, t["gamma1"], t["beta1"], affine, 1e-5, True),
    )
    torch.library.opcheck(
        torch.ops.greedynas.excite.default, (x, torch.randn(3, 24), affine[0], affine[1], "sigmoid", "relu")
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("expands", [False, True])
def test_operators_of_the_block(expands: bool, gated: bool) -> None:
    t = make((8, 24, 8) if expands else (24, 24, 24), (3, 5), (3, 4, 4), expands=expands, gated=gated)
    norms = [(t[f"gamma{i}"], t[f"beta{i}"]) for i in (1, 2, 3)]
    first = (t["pw"], *norms[0]) if expands else (None, None, None)
    parameters = [*first, *norms[1], t["pwl"], *norms[2], *(t[f"se{i}"] for i in range(4))]
    layer = (2, "same_upper", "relu", False, [1e-3, 1e-3, 1e-3], ["relu", "sigmoid"] if gated else ["", ""])
    block = (t["x"], parameters, [t["dw0"], t["dw1"]])
    y, moments, kept = core.forward_op(*block, [], *layer, True)
    torch.library.opcheck(core.forward_op, (*block, [], *layer, True))
    torch.library.opcheck(core.forward_op, (*block, moments, *layer, False))
    grad = torch.randn_like(y)
    torch.library.opcheck(core.backward_op, (grad, kept, True, *block, moments, *layer))
    with FlopCounterMode(display=False) as counter:
        core.forward_op(*block, [], *layer, False)
        core.backward_op(grad, kept, True, *block, moments, *layer)
    pixels = 3 * 4
    forward = 4 * pixels * 24 * 8 if expands else 0
    forward += pixels * (t["dw0"].numel() + t["dw1"].numel() + t["pwl"].numel())
    forward += 2 * 3 * 4 * 24 if gated else 0
    assert counter.get_total_flops() == 3 * 2 * forward


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"x": torch.zeros(2, 7, 4, 4)}, {}, r"expand: expected a weight \[24, 7, 1, 1\], got \[24, 8, 1, 1\]"),
        ({"x": torch.zeros(2, 8)}, {}, r"x: expected a floating \[N, C, H, W\]"),
        ({"pw": None}, {}, "expected 8 channels as x, which is not expanded, got 24"),
        ({"pwl": torch.zeros(8, 23, 1, 1)}, {}, r"project: expected a weight \[8, 24, 1, 1\]"),
        ({"gamma2": torch.ones(23)}, {}, r"depthwise: expected a norm's weight \[24\], got \[23\]"),
        ({"moments3": torch.ones(2, 8)}, {}, "expected all norms to have some or none, got both"),
        ({}, {"stride": 3}, "stride must be 1 or 2, got 3"),
        ({}, {"activation": "gelu"}, "activation: expected identity, relu, hard_swish, silu or relu6, got 'gelu'"),
        ({}, {"stride": 2, "residual": True}, "residual: expected stride 1 and 8 channels out, got stride 2"),
        ({"x": torch.zeros(1, 8, 2, 2)}, {"stride": 2}, "expected more than one value a channel after stride 2"),
        ({"dw0": torch.ones(24, 1, 4, 4)}, {}, "kernel size 0 must be odd"),
    ],
)
def test_bad_input(change: Tensors, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(inverted_residual, {**make(), **change}, **options)
