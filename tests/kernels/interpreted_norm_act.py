"""The kernels of norm, activation, residual, pooling and gate, interpreted: `test_kernels_interpreted.py` runs this."""

from __future__ import annotations

import importlib

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

from greedynas_fast.ops import masked_norm_core as core

# An operation that two groups share, one that masks its group, and one of its own.
SMALL = Case(((1, 6, 0), (1, 3, -1), (2, 4, 1), (1, 6, 0)), height=2)

_LIBRARY = torch.library.Library("greedynas", "IMPL")
for _name, _function in core.IMPLEMENTATIONS.items():
    _LIBRARY.impl(_name, _function, "CPU")


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public functions take the kernels, whose outputs begin as not-a-number; tiny shapes take several tiles."""
    for module in ("masked_norm_act", "masked_gate"):
        monkeypatch.setattr(importlib.import_module(f"greedynas_fast.ops.{module}"), "backend", lambda x: "triton")
    plain = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: poisoned(plain(*sizes, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda like: poisoned(plain(like.shape, dtype=like.dtype)))
    for name, rows in (("_APPLY_ROWS", 16), ("_BLOCK_R", 8), ("_BACKWARD_BLOCK_R", 8), ("_BLOCK_T", 2)):
        monkeypatch.setattr(core, name, rows)
    monkeypatch.setattr(core, "_tile_rows", lambda layout: 16)


def poisoned(result: Tensor) -> Tensor:
    return result.fill_(torch.nan) if result.is_floating_point() else result


def both(case: Case, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results and gradients of the kernels, and of the oracle in float64 at the same inputs."""
    leaves, gates = leaves_of(case, dtype), gates_of(case)
    parts = by_group(case, public(case, leaves, gates))
    got = parts | {f"grad {name}": grad for name, grad in gradients(parts, leaves, gates).items()}
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    wanted = oracle(case, exact, gates)
    want = wanted | {f"grad {name}": grad for name, grad in gradients(wanted, exact, gates).items()}
    return got, want


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_batch_norm(case: Case) -> None:
    got, want = both(case)
    for flat in ("x", "residual"):
        layout = case.layout if flat == "x" else case.layout_out
        for found in (got, want):
            if (grad := found.pop(f"grad {flat}", None)) is not None:
                found |= {f"grad {flat}{g}": layout.view(grad, g) for g in layout.live}
    compare(case, got, want, 2e-5)  # float32 sums of up to some hundred values


def test_bf16() -> None:
    got, want = both(SMALL, torch.bfloat16)
    for found in (got, want):
        found |= {f"grad x{g}": SMALL.layout.view(found["grad x"], g) for g in SMALL.layout.live}
        del found["grad x"], found["grad residual"]
    compare(SMALL, got, want, 2e-2)  # results of 8 bits


def test_gradients_are_added_to_the_bank_and_the_rest_of_it_is_left_alone() -> None:
    case = SMALL
    leaves, gates = leaves_of(case), gates_of(case)
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    of_bank = gradients(oracle(case, exact, gates), exact, gates)["bank"]
    del leaves["residual"]
    before = torch.randn(200)
    bank_grad = before.clone()
    parts = by_group(case, public(case, leaves | {"residual": exact["residual"].detach().float()}, gates, bank_grad))
    random_sum(parts).backward()
    untouched = of_bank == 0
    assert torch.equal(bank_grad[untouched], before[untouched])
    assert untouched.sum() > 60
    torch.testing.assert_close(bank_grad.double() - before, of_bank, rtol=1e-4, atol=1e-4)


def test_equal_bits_each_time_and_in_any_company() -> None:
    case = SMALL
    results = []
    for _ in range(2):
        leaves, gates = leaves_of(case), gates_of(case)
        parts = by_group(case, public(case, leaves, gates))
        results.append(parts | gradients(parts, leaves, gates))
    for name, value in results[0].items():
        assert torch.equal(value.nan_to_num(), results[1][name].nan_to_num()), name
    alone = Case((SMALL.groups[2],), height=2)
    leaves = leaves_of(case)
    own = {"x": alone.layout.pack([case.layout.view(leaves["x"], 2)]), "bank": leaves["bank"]}
    own["residual"] = alone.layout_out.pack([case.layout_out.view(leaves["residual"], 2)])
    lone = by_group(alone, public(alone, own, {}))
    for name in ("y", "moments", "gate"):
        assert torch.equal(lone[f"{name}0"], results[0][f"{name}2"]), name


def test_compiles_to_one_graph() -> None:
    compiled, eager = compiled_and_eager(SMALL)
    assert all(torch.equal(compiled[name], value) for name, value in eager.items())


def test_variance_of_values_far_from_zero() -> None:
    """The mean is ten thousand times the deviation: of sums of squares no digit would be right."""
    case = Case(((4, 16, 0),), height=4, width=5)
    x = 1e4 + torch.randn(case.layout.numel, generator=torch.Generator().manual_seed(0))
    moments = core.IMPLEMENTATIONS["masked_moments"](x, *_parts(case))
    rows = x.view(-1, 16).double()
    torch.testing.assert_close(moments[1].double(), rows.var(0, correction=0), rtol=2e-3, atol=0)  # 1e4 x epsilon
    torch.testing.assert_close(moments[0].double(), rows.mean(0), rtol=1e-6, atol=0)


def _parts(case: Case) -> tuple[object, ...]:
    layout = case.layout
    return layout.samples, layout.height, layout.width, layout.widths


def test_not_a_number_passes() -> None:
    case = Case(((1, 16, 0),), activation="relu", residual=False)
    x = torch.full((case.layout.numel,), torch.nan)
    scale_shift = torch.ones(2, 16)
    y = core.IMPLEMENTATIONS["masked_norm_act"](x, scale_shift, None, *_parts(case), (16,), "relu")
    assert bool(y.isnan().all())


def test_nothing_is_launched_for_masked_groups() -> None:
    case = Case(((2, 8, -1), (1, 4, -1)))
    leaves = leaves_of(case)
    results = public(case, leaves, {})
    assert results["moments"].shape == (2, 0)
    for g in case.layout_out.live:
        assert torch.equal(case.layout_out.view(results["y"], g), case.layout_out.view(leaves["residual"], g))


def test_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas, fakes: the operators say what they write to and what comes out."""
    monkeypatch.undo()
    case = Case(((1, 4, 0), (1, 3, -1)), height=1, width=2)
    layout, out = case.layout, case.layout_out
    leaves = {name: leaf.detach() for name, leaf in leaves_of(case).items()}
    parts, ops = _parts(case), torch.ops.greedynas
    vectors = torch.ones(2, layout.channel_offsets[-1])
    x, bank, offsets = leaves["x"], leaves["bank"], case.offsets
    pooled = torch.ones(layout.gate_offsets[-1])
    act = ("hard_swish",)
    calls = [
        (ops.masked_moments, (x, *parts)),
        (ops.masked_scale_shift, (vectors, bank, *offsets, *parts, EPS)),
        (ops.masked_scale_shift_backward_, (vectors, vectors, bank, bank.clone(), *offsets, *parts, EPS)),
        (ops.masked_norm_act, (x, vectors, leaves["residual"], *parts, out.widths, *act)),
        (
            ops.masked_norm_act_backward,
            (leaves["residual"], x, vectors, leaves["residual"], *parts, out.widths, *act, True),
        ),
        (ops.masked_pool, (x, vectors, *parts, case.pools, *act)),
        (ops.masked_pool_backward_, (vectors.clone(), pooled, x, vectors, *parts, case.pools, *act)),
        (ops.masked_join_gradients, (x, vectors, pooled, x, vectors, vectors, *parts, case.pools, *act)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema",))
        with torch._subclasses.FakeTensorMode() as mode:
            faked = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
            fake = operator(*faked)
        real = operator(*arguments)
        shapes = [[tuple(t.shape) for t in _all(found)] for found in (fake, real)]
        assert shapes[0] == shapes[1], operator


EPS = 1e-3


def _all(found: object) -> list[Tensor]:
    if found is None:
        return []
    return [found] if isinstance(found, Tensor) else list(found)
