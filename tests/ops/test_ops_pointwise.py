"""The operators of the 1x1 convolution against autograd in float64, over prologues, gates, norms, levels, layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.ops.pointwise import backward_op, forward_op, pointwise
from greedynas_fast.reference.bn_act import ACTIVATIONS
from greedynas_fast.reference.pointwise import pointwise as reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}  # of the largest value
EPS = 1e-3
# Images, rows and columns, channels in and out: odd ones, single ones, several blocks of rows, several panels, a depth
# that is divided, and images whose borders lie within blocks.
SHAPES = (
    ((2, 3, 3), 1, 1),
    ((3, 5, 2), 3, 5),
    ((1, 1, 7), 17, 33),
    ((2, 13, 11), 24, 40),
    ((3, 20, 9), 300, 16),
    ((5, 9, 9), 8, 70),
    ((2, 30, 31), 48, 7),
)
# The same with groups.
GROUPED = (
    (((3, 5, 2), 6, 4), 2),
    (((1, 1, 7), 15, 33), 3),
    (((2, 13, 11), 48, 40), 2),
    (((3, 20, 9), 600, 32), 2),
    (((5, 9, 9), 8, 72), 8),
)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def make(
    shape: tuple[tuple[int, int, int], int, int], dtype: torch.dtype = torch.float32, groups: int = 1
) -> dict[str, Tensor]:
    (n, height, width), inner, outer = shape
    generator = torch.Generator().manual_seed(inner)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "x": channels_last(randn(n, inner, height, width).to(dtype)),
        "weight": (randn(outer, inner // groups, 1, 1) / (inner // groups) ** 0.5).to(dtype),
        "scale_shift": randn(2, inner),
        "gates": randn(n, inner).sigmoid(),
        "norm_weight": randn(outer),
        "norm_bias": randn(outer),
        "grad": channels_last(randn(n, outer, height, width).to(dtype)),
        "add": channels_last(randn(n, inner, height, width).to(dtype)),
    }


def read(x: Tensor, scale_shift: Tensor | None, prologue: str, gates: Tensor | None) -> Tensor:
    a = x
    if scale_shift is not None:
        a = ACTIVATIONS[prologue](x * scale_shift[0, :, None, None] + scale_shift[1, :, None, None])
    return a if gates is None else a * gates[:, :, None, None]


def same(got: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    assert got.shape == want.shape, what
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[dtype] * scale, msg=lambda m: f"{what}: {m}")


def check(given: dict[str, Tensor], prologue: str, gated: bool, norm: str, added: bool) -> None:
    """norm: none, batch (through its moments), constant, or scaled (batch, and the gradient multiplied before)."""
    dtype = given["x"].dtype
    scale_shift = given["scale_shift"] if prologue else None
    gates = given["gates"] if gated else None
    y, moments = forward_op(given["x"], given["weight"], scale_shift, prologue, gates, True)
    exact = {name: value.double().requires_grad_() for name, value in given.items()}
    a = read(exact["x"], exact["scale_shift"] if prologue else None, prologue, exact["gates"] if gated else None)
    wanted = torch.nn.functional.conv2d(a, exact["weight"], groups=a.shape[1] // exact["weight"].shape[1])
    same(y, wanted.detach(), dtype, "y")
    variance, mean = torch.var_mean(wanted.detach(), (0, 2, 3), correction=0)
    same(moments, torch.stack((mean, variance)), dtype, "moments")
    if y.numel() // y.shape[1] == 1:
        return

    layer: tuple[Any, ...] = (None, None, None, 0.0, None, False)
    result, grad = wanted, given["grad"]
    if norm != "none":
        batch = (None, None, True) if norm != "constant" else (mean, variance, False)
        affine = (exact["norm_weight"], exact["norm_bias"])
        result = torch.nn.functional.batch_norm(wanted, *batch[:2], *affine, training=batch[2], eps=EPS)
        known = torch.autograd.grad(result, affine, grad.double(), retain_graph=True)
        layer = (y, moments, given["norm_weight"], EPS, torch.stack(known).float(), norm == "scaled")
        if norm == "constant":
            layer = (*layer[:4], None, False)
    through = torch.autograd.grad(
        result, (a, exact["x"], exact["weight"], exact["scale_shift"]), grad.double(), allow_unused=True
    )
    if norm == "scaled":
        factor = given["norm_weight"].double() / (variance + EPS).sqrt()
        grad = (grad.double() * factor[:, None, None]).to(dtype)
    add = given["add"] if added else None
    grad_x, grad_weight, grad_scale_shift = backward_op(
        grad, *layer, given["x"], given["weight"], scale_shift, prologue, gates, add
    )
    plain = not prologue or gated
    same(grad_x, through[0 if plain else 1] + (0 if add is None else add.double()), dtype, "grad x")
    same(grad_weight, through[2], dtype, "grad weight")
    if plain:
        assert grad_scale_shift.numel() == 0
    else:
        same(grad_scale_shift, through[3], dtype, "grad scale and shift")


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_autograd(shape: tuple[tuple[int, int, int], int, int]) -> None:
    given = make(shape)
    for prologue, gated, norm in itertools.product(
        ("", "identity", "relu", "hard_swish", "silu", "relu6"), (False, True), ("none", "batch", "constant", "scaled")
    ):
        check(given, prologue, gated, norm, added=(not prologue or gated) and norm != "none")


@pytest.mark.usefixtures("level")
def test_weights_beyond_the_caches() -> None:
    """The backward pass has other blocks then: here three, with two sums of the weight's gradient."""
    given = make(((8, 7, 7), 400, 352))
    for prologue, gated in (("", False), ("relu", False), ("relu", True)):
        check(given, prologue, gated, "batch", added=not prologue or gated)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(("shape", "groups"), GROUPED, ids=str)
def test_groups(shape: tuple[tuple[int, int, int], int, int], groups: int) -> None:
    given = make(shape, groups=groups)
    for prologue, gated, norm in itertools.product(("", "silu"), (False, True), ("none", "batch")):
        check(given, prologue, gated, norm, added=(not prologue or gated) and norm != "none")


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("norm", ["none", "batch", "constant", "scaled"])
def test_bf16(norm: str, groups: int) -> None:
    given = make(((2, 8, 8), 24, 16), torch.bfloat16, groups)
    for prologue, gated in itertools.product(("", "hard_swish"), (False, True)):
        check(given, prologue, gated, norm, added=not prologue)


def test_moments_far_from_zero() -> None:
    """Their differences are small against the values themselves."""
    given = make(((4, 16, 16), 8, 24))
    x = channels_last(given["x"] * 1e-2 + 100)
    y, moments = forward_op(x, given["weight"], None, "", None, True)
    variance, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(moments.double(), torch.stack((mean, variance)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_threads_do_not_matter(groups: int, thread_counts: Iterator[int]) -> None:
    given = make(((8, 20, 20), 40, 24), groups=groups)
    results = []
    for _ in thread_counts:
        inputs = (given["x"], given["weight"], given["scale_shift"], "hard_swish", None)
        grads = backward_op(given["grad"], None, None, None, 0.0, None, False, *inputs, None)
        results.append((*forward_op(*inputs, True), *grads))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_an_image_does_not_depend_on_the_others() -> None:
    given = make(((6, 9, 9), 24, 40))
    inputs = (given["weight"], given["scale_shift"], "hard_swish", None, False)
    whole, _ = forward_op(given["x"], *inputs)
    assert torch.equal(whole[2:4], forward_op(given["x"][2:4], *inputs)[0])


def test_layouts() -> None:
    given = make(((2, 6, 5), 24, 8))
    wide = channels_last(torch.full((2, 40, 6, 5), torch.nan))
    wide[:, 9:33] = given["x"]
    wanted, _ = forward_op(given["x"], given["weight"], None, "", None, False)
    gradients = backward_op(
        given["grad"], None, None, None, 0.0, None, False, given["x"], given["weight"], None, "", None, None
    )
    for x in (given["x"].contiguous(), wide[:, 9:33]):
        assert torch.equal(forward_op(x, given["weight"], None, "", None, False)[0], wanted)
        grad = given["grad"].contiguous()
        found = backward_op(grad, None, None, None, 0.0, None, False, x, given["weight"], None, "", None, None)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_empty_batch() -> None:
    x, weight = channels_last(torch.empty(0, 8, 4, 4)), torch.ones(5, 8, 1, 1)
    y, moments = forward_op(x, weight, None, "", None, True)
    assert y.shape == (0, 5, 4, 4)
    assert not moments.any()
    _, grad_weight, _ = backward_op(y, None, None, None, 0.0, None, False, x, weight, None, "", None, None)
    assert not grad_weight.any()


@pytest.mark.parametrize("gated", [False, True])
def test_operators(gated: bool) -> None:
    given = make(((2, 3, 4), 8, 5))
    inputs = (given["x"], given["weight"], given["scale_shift"], "relu", given["gates"] if gated else None)
    torch.library.opcheck(forward_op, (*inputs, True))
    y, moments = forward_op(*inputs, True)
    norm = (y, moments, given["norm_weight"], EPS, given["norm_weight"].repeat(2, 1), True)
    torch.library.opcheck(backward_op, (given["grad"], *norm, *inputs, None))


@pytest.mark.parametrize("groups", [1, 2])
def test_floating_point_operations(groups: int) -> None:
    given = make(((2, 3, 4), 8, 6), groups=groups)
    inputs = (given["x"], given["weight"], None, "", None)
    with FlopCounterMode(display=False) as counter:
        forward_op(*inputs, False)
    assert counter.get_total_flops() == 2 * 2 * 12 * 8 * 6 // groups
    with FlopCounterMode(display=False) as counter:
        backward_op(given["grad"], None, None, None, 0.0, None, False, *inputs, None)
    assert counter.get_total_flops() == 2 * 2 * 2 * 12 * 8 * 6 // groups


def with_gradients(function: Any, inputs: list[Tensor], activation: str | None, grad: Tensor) -> list[Tensor]:
    """y, and the gradients of x, weight, scale and shift."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    x, weight, *norm = leaves
    y = function(x, weight, (*norm, activation) if norm else None)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "identity", "relu", "hard_swish", "silu", "relu6"])
def test_the_function(activation: str | None, dtype: torch.dtype) -> None:
    torch._dynamo.reset()  # or it gives up after a few shapes
    for shape, groups in ((SHAPES[3], 1), (GROUPED[2][0], 2), (((0, 4, 4), 8, 5), 1)):
        given = make(shape, dtype, groups)
        norm = [] if activation is None else [*given["scale_shift"]]
        inputs = [given["x"], given["weight"].float(), *norm]
        expected = with_gradients(reference, [value.double() for value in inputs], activation, given["grad"])
        found = with_gradients(pointwise, inputs, activation, given["grad"])
        for index, (mine, exact) in enumerate(zip(found, expected, strict=True)):
            same(mine, exact, dtype, str(index))
        compiled = torch.compile(pointwise, fullgraph=True, backend="aot_eager")
        for mine, theirs in zip(with_gradients(compiled, inputs, activation, given["grad"]), found, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_gradients_of_the_function() -> None:
    given = make(((2, 3, 2), 4, 3))
    inputs = [given["x"], given["weight"], *given["scale_shift"]]

    def function(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return pointwise(x, weight, (scale, shift, "identity"))

    assert torch.autograd.gradcheck(function, [value.double().requires_grad_() for value in inputs])
    # The core, in float32: linear in each input, so wide differences are exact but for rounding.
    leaves = [value.double().requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(
        lambda *values: function(*(value.float() for value in values)).double(), leaves, eps=0.1, atol=1e-3, rtol=1e-3
    )
    (grad,) = torch.autograd.grad(pointwise(given["x"].requires_grad_(), given["weight"]).sum(), given["x"])
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_bad_input_of_the_function() -> None:
    x, weight, ones = torch.randn(1, 8, 5, 5), torch.randn(6, 8, 1, 1), torch.ones(8)
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((x[0], weight), "x must be floating point"),
        ((x.int(), weight), "x must be floating point"),
        ((x, weight[:, :3]), r"weight must be \[C_out, 8 / G, 1, 1\], got \[6, 3, 1, 1\]"),
        ((x, weight[:5, :4]), r"weight must be .*, got \[5, 4, 1, 1\]"),
        ((x, torch.randn(6, 8, 3, 3)), "weight must be"),
        ((x, weight.double()), "weight must be float32"),
        ((x, weight.to("meta")), "weight is on meta, x on cpu"),
        ((x, weight, (ones, ones, "gelu")), "got 'gelu'"),
        ((x, weight, (ones, ones[:3], "relu")), r"shift must be floating point \[8\]"),
    ]
    for arguments, words in cases:
        with pytest.raises(InputError, match=words):
            pointwise(*arguments)
