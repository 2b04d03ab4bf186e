"""Op-masked norm, activation, residual, pooling and gates on the CPU against torch's own layers; arguments; fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked_norm_cases import (
    CASES,
    Case,
    by_group,
    compare,
    compiled_and_eager,
    gates_of,
    gradients,
    leaves_of,
    oracle,
    public,
    random_sum,
)
from torch import Tensor

from greedynas_fast.errors import InputError
from greedynas_fast.ops import masked_norm_core as core
from greedynas_fast.ops import triton_kernels
from greedynas_fast.ops.inverted_residual import Gate
from greedynas_fast.ops.masked_gate import masked_gates, masked_squeeze
from greedynas_fast.ops.masked_norm_act import masked_moments, masked_norm_act, masked_scale_shift
from greedynas_fast.ops.ragged import ragged

# float32: sums of some dozen values; 8 and 11 bits of results.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-12}


def all_of(case: Case, leaves: dict[str, Tensor], compute: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    gates = gates_of(case)
    parts = compute(case, leaves, gates)
    return parts | {f"grad {name}": grad for name, grad in gradients(parts, leaves, gates).items()}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_batch_norm(case: Case, dtype: torch.dtype) -> None:
    leaves = leaves_of(case, dtype)
    got = all_of(case, leaves, lambda *arguments: by_group(case, public(*arguments)))
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    want = all_of(case, exact, oracle)
    for name, layout in (("grad x", case.layout), ("grad residual", case.layout_out)):
        for found in (got, want):
            if (grad := found.pop(name, None)) is not None:
                found |= {f"{name}{g}": layout.view(grad, g) for g in layout.live}
    compare(case, got, want, TOLERANCE[dtype])


def test_gradients_are_added_to_the_bank() -> None:
    case = CASES[0]
    leaves, gates = leaves_of(case, torch.float64), gates_of(case)
    want = gradients(oracle(case, leaves, gates), leaves, gates)["bank"]
    before = torch.randn(200, dtype=torch.float64)
    bank_grad = before.clone()
    leaves["bank"] = leaves["bank"].detach()
    parts = by_group(case, public(case, leaves, gates, bank_grad))
    random_sum(parts).backward()
    torch.testing.assert_close(bank_grad - before, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(bank_grad[want == 0], before[want == 0])


def test_gradcheck() -> None:
    case = Case(((1, 2, 0), (1, 1, -1), (1, 2, 0)), height=1, width=2, activation="silu")
    leaves, gates = leaves_of(case, torch.float64), {}
    for op, gate in gates_of(case).items():
        gates[op] = Gate(*(value.detach().double() for value in gate[:4]), *gate[4:])

    def function(x: Tensor, residual: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
        return tuple(by_group(case, public(case, {"x": x, "residual": residual, "bank": bank}, gates)).values())

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


def test_groups_do_not_depend_on_one_another() -> None:
    case = CASES[0]
    leaves, gates = leaves_of(case), gates_of(case)
    together = by_group(case, public(case, leaves, gates))
    alone = Case((case.groups[2],))
    own = {"x": alone.layout.pack([case.layout.view(leaves["x"], 2)]), "bank": leaves["bank"]}
    own["residual"] = alone.layout_out.pack([case.layout_out.view(leaves["residual"], 2)])
    for name, value in by_group(alone, public(alone, own, {})).items():
        assert torch.equal(value, together[f"{name[:-1]}2"]), name


def test_compiles_to_one_graph() -> None:
    compiled, eager = compiled_and_eager(CASES[3])
    assert all(torch.equal(compiled[name], value) for name, value in eager.items())


LAYOUT = ragged((2, 1), 2, 2, (4, 4))
VECTORS = torch.ones(2, 8)
FLAT = torch.ones(LAYOUT.numel)
BANK = torch.ones(16)
GATE = Gate(torch.ones(2, 4), torch.ones(2), torch.ones(4, 2), torch.ones(4), "relu", "sigmoid")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked_moments(FLAT[1:], LAYOUT), r"masked_moments: x: expected contiguous floating \[48\]"),
        (
            lambda: masked_scale_shift(VECTORS[:, 1:], LAYOUT, BANK, (0, 4), (8, 12)),
            r"moments: expected float32 \[2, 8\]",
        ),
        (
            lambda: masked_scale_shift(VECTORS, LAYOUT, BANK, (0,), (8, 12)),
            "weight_offsets: expected one for each of 2",
        ),
        (lambda: masked_scale_shift(VECTORS, LAYOUT, BANK, (0, 4), (8, 13)), "4 values at 13 of group 1 are not in a"),
        (
            lambda: masked_scale_shift(VECTORS, LAYOUT, BANK.half(), (0, 4), (8, 12)),
            "bank: expected contiguous float32",
        ),
        (
            lambda: masked_scale_shift(VECTORS, LAYOUT, BANK, (0, 4), (8, 12), bank_grad=BANK[1:]),
            r"bank_grad: expected torch.float32 \[16\]",
        ),
        (lambda: masked_norm_act(FLAT, LAYOUT, VECTORS, activation="tanh"), "activation: expected one of identity"),
        (lambda: masked_norm_act(FLAT, LAYOUT, VECTORS, residual=FLAT.half()), "residual: expected torch.float32 as x"),
        (
            lambda: masked_norm_act(FLAT, LAYOUT, VECTORS, residual=FLAT, layout_out=LAYOUT.with_widths((4, 3))),
            r"layout_out: expected widths \(4, 4\) where not masked",
        ),
        (
            lambda: masked_norm_act(FLAT, LAYOUT, VECTORS, layout_out=ragged((1, 1), 2, 2, (4, 4))),
            "layout_out: expected the samples and the size",
        ),
        (
            lambda: masked_squeeze(FLAT, LAYOUT, BANK, (0, 4), (8, 12), pools=[True], activation="relu"),
            "pools: expected one for each of 2 groups",
        ),
        (lambda: masked_gates(torch.ones(12), LAYOUT, [GATE]), r"expected \[12\] and 2 gates, got \[12\] and 1"),
        (
            lambda: masked_gates(torch.ones(12), LAYOUT, [GATE._replace(expand_bias=torch.ones(3)), None]),
            r"expand_bias: expected \[4\]",
        ),
        (
            lambda: masked_gates(torch.ones(12), LAYOUT, [GATE._replace(gate="tanh"), None]),
            "gate: expected one of hard_sigmoid, sigmoid",
        ),
    ],
)
def test_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "available", lambda: False)
    with pytest.raises(InputError, match="need Triton on a GPU"):
        core.IMPLEMENTATIONS["masked_moments"](FLAT, (2, 1), 2, 2, (4, 4))
