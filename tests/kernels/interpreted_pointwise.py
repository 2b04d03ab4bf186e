"""The pointwise kernels, interpreted on the CPU: `test_kernels_interpreted.py` runs this file.

float32 alone: the interpreter multiplies bf16 wrongly.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from masked_pointwise_cases import SAMPLED, Case, Inputs, compare, inputs_of, oracle
from torch import Tensor

from greedynas_fast.ops import masked_pointwise_triton as launch
from greedynas_fast.ops import ragged, ragged_reduction, triton_kernels
from greedynas_fast.ops.masked_pointwise_layer import Layer, OutputGradient, Prologue
from greedynas_fast.ops.masked_pointwise_tiles import Tile

# The least that tl.dot takes: several tiles on each axis of tiny shapes.
TILE = Tile(16, 16, 16, 4, 1)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and workspaces begin as not-a-number."""
    plain, plain_of = torch.empty, Tensor.new_empty

    def poison(result: Tensor) -> Tensor:
        return result.fill_(torch.nan) if result.is_floating_point() else result

    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: poison(plain(*sizes, **options)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *sizes, **options: poison(plain_of(self, *sizes, **options)))


@pytest.fixture(autouse=True)
def small_fan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial results are joined two at a time, so that tiny shapes take several launches."""
    monkeypatch.setattr(launch, "FAN", 2)
    monkeypatch.setattr(ragged_reduction, "BLOCK", 16)


def layer_of(case: Case) -> Layer:
    return Layer(*case.ragged, case.weight_offsets)


def run(case: Case, given: Inputs, bank_grad: Tensor, tile: Tile = TILE) -> dict[str, Any]:
    """Results of the kernels under the names that the oracle has."""
    layer = layer_of(case)
    prologue = Prologue(given.scale, given.shift, case.activation, given.gate)
    y, moments = launch.forward(given.x, given.bank, layer, prologue, case.stats, False, tile)
    of_y = OutputGradient(given.grad, *((y, moments, given.grad_moments) if case.stats else (None, None, None)))
    sums = case.norm or case.gate
    of_x, of_norm, of_gate = launch.data_gradient(of_y, given.x, given.bank, layer, prologue, sums, False, tile)
    launch.add_weight_gradient(bank_grad, of_y, given.x, layer, prologue, False, tile)
    return {
        "y": y,
        "moments": moments,
        "x": of_x,
        "bank": bank_grad,
        "scale": of_norm[0] if case.norm else None,
        "shift": of_norm[1] if case.norm else None,
        "gate": of_gate if case.gate else None,
    }


@pytest.mark.parametrize("case", SAMPLED, ids=str)
def test_against_autograd(case: Case) -> None:
    given = inputs_of(case)
    got = run(case, given, torch.zeros_like(given.bank))
    compare(case, got, oracle(case, given), 1e-5)


def test_the_public_function_launches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("greedynas_fast.ops.masked_pointwise")  # not the function of that name
    monkeypatch.setattr(module, "backend", lambda x: "triton")
    monkeypatch.setattr(launch, "_tile", lambda *arguments: TILE)
    case = SAMPLED[0]
    given = inputs_of(case)
    names = ("x", "bank", "scale", "shift", "gate")
    leaves = {name: getattr(given, name).requires_grad_() for name in names}
    y, moments = module.masked_pointwise(
        leaves["x"], leaves["bank"], case.weight_offsets, *case.ragged, scale=leaves["scale"], shift=leaves["shift"],
        activation=case.activation, gate=leaves["gate"], want_stats=True,
    )  # fmt: skip
    torch.autograd.backward((y, moments), (given.grad, given.grad_moments))
    got = {"y": y, "moments": moments, **{name: leaf.grad for name, leaf in leaves.items()}}
    compare(case, got, oracle(case, given), 1e-5)


def test_the_columns_are_those_of_ragged() -> None:
    groups = triton_kernels.load("groups")
    for name in ("SAMPLES", "WIDTH", "ROWS", "OFFSET", "CHANNEL_OFFSET", "GATE_OFFSET", "TABLE_COLUMNS", "ALIGNMENT"):
        assert getattr(groups, name).value == getattr(ragged, name), name


def test_weight_gradients_are_added_and_the_rest_of_the_bank_is_left_alone() -> None:
    case = SAMPLED[2]
    given = inputs_of(case)
    before = torch.randn(len(given.bank))
    got = run(case, given, before.clone())
    of_bank = oracle(case, given)["bank"]
    assert of_bank is not None
    assert torch.equal(got["bank"][of_bank == 0], before[of_bank == 0])
    torch.testing.assert_close(got["bank"], before + of_bank.float(), rtol=1e-5, atol=1e-5)


def test_long_runs_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several runs a weight tile, joined in more than one step, and tiles of unequal blocks."""
    monkeypatch.setattr("greedynas_fast.ops.masked_pointwise_layer.SHORTEST_RUN", 16)
    monkeypatch.setattr("greedynas_fast.ops.masked_pointwise_layer.WEIGHT_PROGRAMS", 64)
    case = Case(((11, 3, 2, 0), (6, 3, 2, 0)), height=3, width=5, gate=False)
    tile = Tile(16, 16, 32, 4, 1)
    jobs, sums = layer_of(case).weight_jobs(tile, torch.device("cpu"))
    assert sums[0, -1] == len(jobs) == 17
    given = inputs_of(case)
    compare(case, run(case, given, torch.zeros_like(given.bank), tile), oracle(case, given), 1e-5)


def test_variance_of_values_far_from_zero() -> None:
    """The mean is ten thousand times the deviation: of sums of squares no digit would be right."""
    case = Case(((3, 16, 16, 0),), height=4, width=5, norm=False, activation="identity", gate=False)
    given = inputs_of(case)
    given.x = 1e4 + given.x
    layer = Layer(*case.ragged, case.weight_offsets)
    given.bank[8 : 8 + 256] = torch.eye(16).flatten()
    y, moments = launch.forward(given.x, given.bank, layer, Prologue(None, None, "identity", None), True, False, TILE)
    rows = y.view(-1, 16).double()
    torch.testing.assert_close(moments[1].double(), rows.var(0, correction=0), rtol=2e-3, atol=0)  # 1e4 x epsilon
    torch.testing.assert_close(moments[0].double(), rows.mean(0), rtol=1e-6, atol=0)


def test_equal_bits_each_time_and_in_any_company() -> None:
    case = SAMPLED[0]
    given = inputs_of(case)
    one, two = (run(case, given, torch.zeros_like(given.bank)) for _ in range(2))
    for name in one:
        assert torch.equal(one[name].nan_to_num(), two[name].nan_to_num()), name
    alone = Case(case.groups[2:])
    shape_in, shape_out = case.ragged
    part = Inputs(
        x=shape_in.view(given.x, 2).permute(0, 2, 3, 1).reshape(-1).clone(),
        bank=given.bank,
        scale=shape_in.channels(given.scale, 2),
        shift=shape_in.channels(given.shift, 2),
        gate=shape_in.gates(given.gate, 2).reshape(-1),
        grad=shape_out.view(given.grad, 2).permute(0, 2, 3, 1).reshape(-1).clone(),
        grad_moments=given.grad_moments[:, shape_out.channel_offsets[2] :].contiguous(),
    )
    part.x = torch.nn.functional.pad(part.x, (0, alone.ragged[0].numel - len(part.x)))
    part.grad = torch.nn.functional.pad(part.grad, (0, alone.ragged[1].numel - len(part.grad)))
    lone = run(alone, part, torch.zeros_like(given.bank))
    assert torch.equal(alone.ragged[1].view(lone["y"], 0), shape_out.view(one["y"], 2))
    assert torch.equal(alone.ragged[0].view(lone["x"], 0), shape_in.view(one["x"], 2))
    assert torch.equal(lone["moments"], one["moments"][:, shape_out.channel_offsets[2] :])


def test_nothing_is_launched_for_masked_groups() -> None:
    case = Case(((2, 5, 3, -1), (1, 4, 6, -1)))
    shape_in, shape_out = case.ragged
    empty = shape_in.empty(torch.float32, "cpu")
    bank = torch.zeros(4)
    layer = Layer(shape_in, shape_out, case.weight_offsets)
    prologue = Prologue(None, None, "relu", None)
    y, moments = launch.forward(empty, bank, layer, prologue, True, False)
    assert y.shape == (0,)
    assert moments.shape == (2, 0)
    of_y = OutputGradient(y, y, moments, moments)
    assert launch.data_gradient(of_y, empty, bank, layer, prologue, True, False)[0].shape == (0,)
    launch.add_weight_gradient(bank, of_y, empty, layer, prologue, False)
    assert not bank.any()
