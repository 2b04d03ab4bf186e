"""The Triton kernels on a GPU against autograd in float64: results and every gradient."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_pointwise_cases import SAMPLED, Case, Inputs, compare, inputs_of, oracle
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from greedynas_fast.ops.masked_pointwise_tiles import Tile, measured
from greedynas_fast.ops.masked_pointwise_tuning import tune

ops = importlib.import_module("greedynas_fast.ops.masked_pointwise")  # not the function of that name

NAMES = ("x", "bank", "scale", "shift", "gate")
# float32: sums of some thousand values. The half types round the operands of every product and the result.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYERS = [
    *SAMPLED[:4],
    # Layers of MB-SE: expand, project with the gate, widths that no tile divides, and a lone pixel.
    Case(((3, 40, 120, 0), (2, 40, 240, 1), (1, 40, 40, -1), (2, 40, 120, 0)), 14, 14, gate=False),
    Case(((3, 120, 40, 0), (2, 240, 40, 1), (1, 40, 40, -1), (2, 120, 40, 0)), 14, 14),
    Case(((4, 100, 63, 0), (5, 31, 17, 1)), 7, 7, activation="silu"),
    Case(((40, 96, 576, 0), (24, 96, 288, 1)), 28, 28, norm=False, activation="identity", gate=False),
    Case(((65, 8, 24, 0),), 1, 1, activation="relu"),
]


@pytest.fixture
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and workspaces begin as not-a-number."""
    plain, plain_of = torch.empty, Tensor.new_empty

    def poison(result: Tensor) -> Tensor:
        return result.fill_(torch.nan) if result.is_floating_point() else result

    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: poison(plain(*sizes, **options)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *sizes, **options: poison(plain_of(self, *sizes, **options)))


def run(case: Case, given: Inputs, device: torch.device, allow_tf32: bool = False) -> dict[str, Any]:
    moved = given.to(device=device)
    leaves = {name: getattr(moved, name) for name in NAMES}
    for leaf in leaves.values():
        if leaf is not None:
            leaf.requires_grad_()
    y, moments = ops.masked_pointwise(
        leaves["x"],
        leaves["bank"],
        case.weight_offsets,
        *case.ragged,
        scale=leaves["scale"],
        shift=leaves["shift"],
        activation=case.activation,
        gate=leaves["gate"],
        want_stats=case.stats,
        allow_tf32=allow_tf32,
    )
    assert ops.backend(moved.x) == "triton"
    outputs, grads = ((y, moments), (moved.grad, moved.grad_moments)) if case.stats else ((y,), (moved.grad,))
    torch.autograd.backward(outputs, grads)
    return {"y": y, "moments": moments, **{n: None if leaf is None else leaf.grad for n, leaf in leaves.items()}}


# Each case compiles three kernels for each type, a second each: fp16 differs from bf16 in the type alone.
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, dtype) for case in LAYERS for dtype in (torch.float32, torch.bfloat16)),
        *((case, torch.float16) for case in LAYERS[-4:-2]),
    ],
    ids=str,
)
def test_against_autograd(case: Case, dtype: torch.dtype, card: torch.device) -> None:
    given = inputs_of(case, dtype)
    compare(case, run(case, given, card), oracle(case, given), TOLERANCE[dtype])


def test_tf32(card: torch.device) -> None:
    case = LAYERS[-4]
    given = inputs_of(case)
    compare(case, run(case, given, card, allow_tf32=True), oracle(case, given), 5e-3)


def test_equal_bits_each_time(card: torch.device) -> None:
    case = replace(LAYERS[-4], stats=True)
    given = inputs_of(case, torch.bfloat16)
    one, two = (run(case, given, card) for _ in range(2))
    for name, value in one.items():
        assert torch.equal(value.nan_to_num(), two[name].nan_to_num()), name


def test_bank_grad_is_added_to(card: torch.device) -> None:
    case = LAYERS[-5]
    given = inputs_of(case)
    moved = given.to(device=card)
    bank_grad = torch.ones_like(moved.bank)
    y, moments = ops.masked_pointwise(
        moved.x, moved.bank, case.weight_offsets, *case.ragged, scale=moved.scale, shift=moved.shift,
        activation=case.activation, want_stats=True, bank_grad=bank_grad,
    )  # fmt: skip
    torch.autograd.backward((y, moments), (moved.grad, moved.grad_moments))
    of_bank = oracle(case, given)["bank"]
    assert of_bank is not None
    size = float(of_bank.abs().max())
    torch.testing.assert_close(bank_grad.cpu(), 1 + of_bank.float(), rtol=2e-5, atol=2e-5 * size)
    assert bool((bank_grad.cpu()[of_bank == 0] == 1).all())


@pytest.mark.usefixtures("card")
def test_tuning_measures_and_writes(tmp_path: Path) -> None:
    found = tune(["half"], candidates=[Tile(64, 32, 64, 4, 2)], path=tmp_path / "tiles.json")
    assert len(found) == 6
    assert measured(tmp_path / "tiles.json") == found
