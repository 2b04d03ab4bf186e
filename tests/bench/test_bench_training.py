"""`bench block` and `bench supernet_step`: their rows, the comparison before them, and the choice of the path."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bench_budget import TINY

from greedynas_fast import paths, spaces
from greedynas_fast.bench import block, supernet_step, training
from greedynas_fast.bench.supernet_step import Setting
from greedynas_fast.nn import InvertedResidual

PROVIDERS = ["fused", "reference NCHW", "reference channels_last"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    for module in (block, supernet_step):
        monkeypatch.setattr(module, "torch_threads", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(block, "QUICK_SHAPES", ((2, 8, 5),))
    settings = (Setting("sample", 2, None), Setting("sample", 3, 2), Setting("sample", 8, 2, torch.bfloat16))
    monkeypatch.setattr(supernet_step, "QUICK_SETTINGS", settings)


def check(row: dict[str, Any], tolerance: float) -> None:
    assert row["peer"].startswith("reference")
    assert row["ratio_to_best_peer"] > 0
    assert (row["threads"], row["skipped"]) == (1, None)
    assert row["repeats"] in (1, TINY.repeats)  # one of versions far behind the others
    assert 0 < row["max_error"] < tolerance


def test_rows_of_blocks() -> None:
    rows = block.measure(TINY)
    kinds = [f"{kernels}{gate}" for kernels in ("k3", "k5", "k3,5,7") for gate in ("", " SE")]
    expected = [("block", provider, f"2x8x5x5 {kind}") for kind in kinds for provider in PROVIDERS]
    assert [(row["name"], row["provider"], row["note"]) for row in rows] == expected
    for row in rows:
        check(row, 1e-4)
        assert row["paths"] == 2


def test_rows_of_steps() -> None:
    rows = supernet_step.measure(TINY)
    assert [row["provider"] for row in rows] == [*3 * PROVIDERS, "reference channels_last, float32"]
    for row in rows[:6]:
        assert row["name"] == "supernet_step.sample"
        check(row, supernet_step.TOLERANCES[torch.float32])
    for row in rows[6:]:
        assert row["name"] == "supernet_step.sample.bf16"
        check(row, supernet_step.TOLERANCES[torch.bfloat16])
    assert rows[-1]["max_error"] < supernet_step.TOLERANCES[torch.float32] < min(row["max_error"] for row in rows[6:9])
    assert [row["paths"] for row in rows] == 3 * [2] + 3 * [6] + 4 * [16]
    assert rows[0]["note"].startswith("batch 2 at 28, path of mean cost, ")
    assert rows[3]["note"].startswith("batch 3 at 28, 2 paths, ")


def test_the_path_of_mean_cost() -> None:
    space = spaces.get("sample")
    (path,) = supernet_step.mean_path(space)
    macs = [space.cost(other).macs for other in paths.propose(space.allowed, 0, 0, 0, 1000)]
    mean = sum(macs) / 1000
    assert abs(space.cost(path).macs - mean) == min(abs(each - mean) for each in macs)
    assert np.array_equal(path, supernet_step.mean_path(space)[0])


def test_compiled_blocks_take_part_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "KERNELS", ((3,),))
    compiled: list[bool] = []

    def stand_in(self: torch.nn.Module, dynamic: bool) -> None:
        compiled.append(dynamic)

    monkeypatch.setattr(InvertedResidual, "compile", stand_in)
    rows = block.measure(replace(TINY, compile=True))
    assert compiled == [False, False]
    assert [row["provider"] for row in rows] == 2 * [*PROVIDERS, block.COMPILED]

    def broken(self: torch.nn.Module, dynamic: bool) -> None:
        def fail(x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

        self.forward = fail  # type: ignore[method-assign]

    monkeypatch.setattr(InvertedResidual, "compile", broken)
    rows = block.measure(replace(TINY, compile=True))
    assert [row["skipped"] for row in rows[3::4]] == 2 * ["torch.compile does not work here (NotImplementedError)"]
    assert [row["provider"] for row in rows[3::4]] == 2 * [block.COMPILED]


def test_refuses_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    right = block.InvertedResidual.forward

    def wrong(self: InvertedResidual, x: torch.Tensor) -> torch.Tensor:
        y = right(self, x)
        return y * 1.1 if x.dtype == torch.float32 else y

    monkeypatch.setattr(InvertedResidual, "forward", wrong)
    with pytest.raises(RuntimeError, match=r"block 2x8x5x5 k3: fused and the float64 reference disagree by 0\.1"):
        block.measure(TINY)
    with pytest.raises(RuntimeError, match=r"supernet_step\.sample: fused and the float64 reference disagree by"):
        supernet_step.measure(TINY)


def test_refuses_a_wrong_gradient_and_wrong_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    right = block._step

    def wrong(module: torch.nn.Module, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, *grads = right(module, x, grad)
        return (y, *grads[:-1], grads[-1] * (1.01 if x.dtype == torch.float32 else 1))

    monkeypatch.setattr(block, "_step", wrong)
    with pytest.raises(RuntimeError, match="disagree by"):
        block.measure(TINY)

    def without_statistics(module: Any, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x.dtype == torch.float32:
            module.bn3.momentum = 0.0
        return right(module, x, grad)

    monkeypatch.setattr(block, "_step", without_statistics)
    with pytest.raises(RuntimeError, match="disagree by"):
        block.measure(TINY)


def test_distance() -> None:
    wanted = {"gradients": [torch.tensor([300.0, 400.0]), torch.tensor([0.0])], "statistics": [torch.zeros(2)]}
    assert training.distance(wanted, wanted) == 0
    # The norms are 500 and, for what is zero, 500 * FLOOR.
    assert training.distance({**wanted, "gradients": [torch.tensor([300.0, 401.0]), torch.zeros(1)]}, wanted) == 1 / 500
    noise = [wanted["gradients"][0], torch.tensor([0.5])]
    assert training.distance({**wanted, "gradients": noise}, wanted) == pytest.approx(0.5 / (500 * training.FLOOR))
    assert training.distance({**wanted, "statistics": [torch.ones(2)]}, wanted) > 1
    bad = training.distance({**wanted, "gradients": [torch.full((2,), torch.nan), torch.zeros(1)]}, wanted)
    assert math.isnan(bad)
    with pytest.raises(RuntimeError, match="a: b and the float64 reference disagree by nan"):
        training.refuse("a", "b", bad, 1.0)
