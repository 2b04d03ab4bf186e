"""The op-masked pointwise convolution on the CPU against autograd through torch's own layers, and as an operator."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from masked_pointwise_cases import SAMPLED, THREE, Case, Inputs, compare, elements, inputs_of, oracle
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from greedynas_fast.errors import InputError
from greedynas_fast.ops.ragged import Ragged

ops = importlib.import_module("greedynas_fast.ops.masked_pointwise")  # not the function of that name

SMALL = ((1, 3, 2, 0), (1, 7, 3, -1), (2, 3, 2, 0))
NAMES = ("x", "bank", "scale", "shift", "gate")
# float32: sums of some dozen values. bf16: the result has 8 bits, and so have the operands.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-12}


def call(case: Case, tensors: Any, **options: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = ops.masked_pointwise(
        tensors["x"],
        tensors["bank"],
        case.weight_offsets,
        *case.ragged,
        scale=tensors["scale"],
        shift=tensors["shift"],
        activation=case.activation,
        gate=tensors["gate"],
        want_stats=case.stats,
        **options,
    )
    return result


def without_gaps(shape: Ragged, flat: Tensor) -> Tensor:
    """The same values, but no gradient flows to what lies between groups, where it is undefined."""
    return shape.pack([shape.view(flat, g) for g in range(shape.groups)])


def leaves_of(given: Inputs) -> dict[str, Tensor | None]:
    values = {name: getattr(given, name) for name in NAMES}
    return {name: None if v is None else v.detach().clone().requires_grad_() for name, v in values.items()}


def run(case: Case, given: Inputs, **options: Any) -> dict[str, Tensor | None]:
    leaves = leaves_of(given)
    y, moments = call(case, leaves, **options)
    outputs, grads = ((y, moments), (given.grad, given.grad_moments)) if case.stats else ((y,), (given.grad,))
    torch.autograd.backward(outputs, grads)
    return {"y": y, "moments": moments, **{n: None if leaf is None else leaf.grad for n, leaf in leaves.items()}}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", SAMPLED, ids=str)
def test_against_autograd(case: Case, dtype: torch.dtype) -> None:
    given = inputs_of(case, dtype)
    if dtype is torch.float64:
        given = given.to(dtype=dtype)
    got = run(case, given)
    assert got["y"] is not None
    assert got["y"].dtype is dtype
    compare(case, got, oracle(case, given), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "case",
    [
        Case(SMALL),
        Case(SMALL, norm=False, activation="silu", stats=False),
        Case(SMALL, activation="relu6"),
        Case(SMALL, activation="relu", gate=False),
    ],
    ids=str,
)
def test_gradcheck(case: Case) -> None:
    given = inputs_of(case).to(dtype=torch.float64)
    leaves = {name: leaf for name, leaf in leaves_of(given).items() if leaf is not None}
    shape_in, shape_out = case.ragged

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        tensors = dict.fromkeys(NAMES) | dict(zip(leaves, values, strict=True))
        tensors["x"] = without_gaps(shape_in, tensors["x"])
        y, moments = call(case, tensors)
        return elements(shape_out, y), moments

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


def test_bank_grad_takes_the_place_of_the_gradient_of_the_bank() -> None:
    case = SAMPLED[0]
    given = inputs_of(case)
    bank_grad = torch.randn(len(given.bank))
    before = bank_grad.clone()
    got = run(case, given, bank_grad=bank_grad)
    want = oracle(case, given)
    assert got.pop("bank") is None
    of_bank = want.pop("bank")
    compare(case, got, want, 1e-5)
    torch.testing.assert_close(bank_grad, before + of_bank.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(bank_grad[of_bank == 0], before[of_bank == 0])


def test_bank_grad_is_written_where_nothing_else_needs_a_gradient() -> None:
    case = replace(SAMPLED[3], stats=False)
    given = inputs_of(case)
    bank_grad = torch.zeros(len(given.bank))
    y, _ = call(case, vars(given), bank_grad=bank_grad)
    y.backward(given.grad)
    of_bank = oracle(case, given)["bank"]
    torch.testing.assert_close(bank_grad, of_bank.float(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not call(case, vars(given), bank_grad=bank_grad)[0].requires_grad


def test_batch_normalisation_from_the_moments() -> None:
    """expand, batch norm, hard-swish, project, with the statistics of the batch: the gradient flows through them."""
    inner, outer = Ragged((3, 2), 3, 3, (8, 12)), Ragged((3, 2), 3, 3, (5, 5))
    bank = torch.randn(1024, dtype=torch.float64, requires_grad=True)
    x = outer.pack([torch.randn(3, 5, 3, 3), torch.randn(2, 5, 3, 3)]).double().requires_grad_()
    weight, bias = (torch.randn(20, dtype=torch.float64, requires_grad=True) for _ in range(2))
    grad = torch.randn(outer.numel, dtype=torch.float64)

    z, moments = ops.masked_pointwise(x, bank, (0, 40), outer, inner, want_stats=True)
    scale = weight * (moments[1] + 1e-5).rsqrt()
    y, _ = ops.masked_pointwise(
        z, bank, (100, 140), inner, outer, scale=scale, shift=bias - moments[0] * scale, activation="hard_swish"
    )
    leaves = (x, bank, weight, bias)
    got = torch.autograd.grad(y, leaves, grad)

    parts = []
    for g, (expand, project, width) in enumerate(((0, 100, 8), (40, 140, 12))):
        z = torch.nn.functional.conv2d(outer.view(x, g), bank[expand:][: 5 * width].view(width, 5, 1, 1))
        affine = (inner.channels(weight, g), inner.channels(bias, g))
        z = torch.nn.functional.hardswish(torch.nn.functional.batch_norm(z, None, None, *affine, training=True))
        parts.append(torch.nn.functional.conv2d(z, bank[project:][: 5 * width].view(5, width, 1, 1)))
    want_y = outer.pack(parts)
    torch.testing.assert_close(elements(outer, y), elements(outer, want_y))
    want = torch.autograd.grad(want_y, leaves, grad)
    torch.testing.assert_close(elements(outer, got[0]), elements(outer, want[0]))
    for one, other in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other)


def test_a_group_does_not_depend_on_the_others() -> None:
    case = SAMPLED[0]
    given = inputs_of(case)
    y, moments = call(case, vars(given))
    shape_in, shape_out = case.ragged
    alone = Case(case.groups[2:])
    part = {
        "x": alone.ragged[0].pack([shape_in.view(given.x, 2)]),
        "bank": given.bank,
        "scale": shape_in.channels(given.scale, 2),
        "shift": shape_in.channels(given.shift, 2),
        "gate": shape_in.gates(given.gate, 2).flatten(),
    }
    lone_y, lone_moments = call(alone, part)
    assert torch.equal(alone.ragged[1].view(lone_y, 0), shape_out.view(y, 2))
    assert torch.equal(lone_moments, moments[:, shape_out.channel_offsets[2] :])


def test_non_contiguous_inputs() -> None:
    case = SAMPLED[0]
    given = inputs_of(case)
    want = run(case, given)
    for name in ("x", "scale", "shift", "gate", "grad"):
        value = getattr(given, name)
        setattr(given, name, torch.stack([value, torch.full_like(value, torch.nan)], 1)[:, 0])
    compare(case, run(case, given), want, 0.0)


@pytest.mark.parametrize("case", [SAMPLED[0], SAMPLED[3]], ids=str)
def test_opcheck(case: Case) -> None:
    given = inputs_of(case)
    # What lies between groups is undefined: sizes without gaps, or two runs would differ there.
    case = replace(case, groups=tuple((16 * n, c, o, op) for n, c, o, op in case.groups), height=1, width=1)
    given = inputs_of(case)
    shape_in, shape_out = case.ragged
    layer = (
        given.scale, given.shift, given.gate, case.weight_offsets, shape_in.samples, (1, 1), shape_in.widths,
        shape_out.widths, case.activation, False,
    )  # fmt: skip
    y, moments = ops.forward_op(given.x, given.bank, *layer, True)
    of_y = (given.grad, y, moments, given.grad_moments)
    # These operators have no autograd of their own: it is around them.
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.forward_op, (given.x, given.bank, *layer, True), test_utils=tests)
    torch.library.opcheck(ops.data_op, (*of_y, given.x, given.bank, *layer, True), test_utils=tests)
    torch.library.opcheck(ops.weight_op, (torch.zeros_like(given.bank), *of_y, given.x, *layer), test_utils=tests)


def test_compiles_to_one_graph() -> None:
    case = SAMPLED[0]
    given = inputs_of(case)

    def function(x: Tensor, bank: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        y, moments = call(case, {"x": x, "bank": bank, "scale": scale, "shift": shift, "gate": gate})
        return (elements(case.ragged[1], y) ** 2).sum() + moments.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves, others = leaves_of(given), leaves_of(given)
    one, two = function(**leaves), compiled(**others)
    assert torch.equal(one, two)
    one.backward()
    two.backward()
    assert torch.equal(elements(case.ragged[0], leaves["x"].grad), elements(case.ragged[0], others["x"].grad))
    for name in NAMES[1:]:
        assert torch.equal(leaves[name].grad, others[name].grad), name


def test_compiles_with_a_gradient_of_the_bank() -> None:
    case = replace(SAMPLED[3], stats=False)
    given = inputs_of(case)
    values = vars(given)

    def function(x: Tensor, bank_grad: Tensor) -> Tensor:
        return (elements(case.ragged[1], call(case, {**values, "x": x}, bank_grad=bank_grad)[0]) ** 2).sum()

    found = []
    for way in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        bank_grad = torch.zeros_like(given.bank)
        way(given.x.clone().requires_grad_(), bank_grad).backward()
        found.append(bank_grad)
    assert found[0].any()
    assert torch.equal(*found)


def test_flops_are_counted_for_live_groups_alone() -> None:
    case = Case(THREE)
    given = inputs_of(case)
    macs = 2 * 9 * 5 * 19 + 1 * 9 * 5 * 19
    with FlopCounterMode(display=False) as counter:
        call(case, vars(given))
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        run(case, given)
    assert counter.get_total_flops() == 3 * 2 * macs


def test_a_batch_of_masked_groups() -> None:
    shape = Ragged((2, 3), 4, 4, (0, 0))
    bank = torch.zeros(4, requires_grad=True)
    x = shape.empty(torch.float32, "cpu").requires_grad_()
    y, moments = ops.masked_pointwise(x, bank, (-1, 99), shape, shape, want_stats=True)
    y.sum().backward()
    assert y.shape == (0,)
    assert moments.shape == (2, 0)
    assert bank.grad is not None
    assert not bank.grad.any()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.zeros(7)}, r"x: expected floating \[144\], got torch.float32 \[7\]"),
    ({"x": torch.zeros(144, dtype=torch.int32)}, "x: expected floating"),
    ({"bank": torch.zeros(19)}, r"bank: expected contiguous torch.float32 of at least 20 elements, got .* \[19\]"),
    ({"bank": torch.zeros(99, dtype=torch.float64)}, "bank: expected contiguous torch.float32"),
    ({"weight_offsets": (8,)}, "weight_offsets: expected 3, one a group, got 1"),
    ({"weight_offsets": (8, 0, 10)}, "weights at 10 begin before those in front of them end at 20"),
    ({"weight_offsets": (-4, 0, 16)}, "weight_offsets: got -4"),
    ({"scale": torch.ones(8)}, "expected both scale and shift or neither"),
    ({"scale": torch.ones(9), "shift": torch.ones(9)}, r"scale: expected floating \[8\], got torch.float32 \[9\]"),
    ({"gate": torch.ones(3)}, r"gate: expected floating \[12\]"),
    ({"activation": "gelu"}, "expected identity, relu, hard_swish, silu or relu6, got 'gelu'"),
    ({"bank_grad": torch.zeros(5)}, r"bank_grad: expected torch.float32 \[64\] like bank"),
    ({"bank_grad": torch.zeros(64, 2)[:, 0]}, "bank_grad: expected a contiguous tensor"),
    ({"gate": torch.ones(12, device="meta")}, "one device, got cpu, meta"),
    ({"ragged_out": Ragged((2, 1, 1), 2, 4, (3, 0, 3))}, "expected equal samples and size in and out"),
    ({"ragged_out": Ragged((2, 1, 1), 3, 4, (3, 2, 3))}, "group 1 has 0 channels in and 2 out"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(144),
        "bank": torch.zeros(64),
        "weight_offsets": (8, 0, 8),
        "ragged_in": Ragged((2, 1, 1), 3, 4, (4, 0, 4)),
        "ragged_out": Ragged((2, 1, 1), 3, 4, (3, 0, 3)),
    }
    ops.masked_pointwise(**good)
    with pytest.raises(InputError, match=message):
        ops.masked_pointwise(**good | changed)
