"""`bench bn_act` and `bench squeeze_excite`: their rows, and that they refuse what is wrong."""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

import pytest
import torch
from bench_budget import TINY

from greedynas_fast.bench import bn_act, norm, squeeze_excite


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(norm, "torch_threads", lambda count: contextlib.nullcontext())
    monkeypatch.setattr(norm, "QUICK_SHAPES", ((2, 24, 5, 5),))


MEASUREMENTS = [(bn_act, ("bn_act.hard_swish", "bn_act.relu")), (squeeze_excite, ("squeeze_excite",))]


@pytest.mark.parametrize(("module", "names"), MEASUREMENTS)
def test_rows(module: ModuleType, names: tuple[str, ...]) -> None:
    rows = module.measure(TINY)
    providers = ("core", "torch channels_last", "torch NCHW")
    assert [(row["name"], row["provider"]) for row in rows] == [(name, who) for name in names for who in providers]
    for row in rows:
        assert row["peer"].startswith("torch")
        assert row["ratio_to_best_peer"] > 0
        assert (row["paths"], row["threads"]) == (2, 1)
        assert row["repeats"] in (1, TINY.repeats)  # one of versions far behind the others
        assert row["max_error"] < 1e-4
        assert row["note"] == "images of [2, 24, 5, 5]"


@pytest.mark.parametrize(("module", "names"), MEASUREMENTS)
def test_refuses_what_is_wrong(monkeypatch: pytest.MonkeyPatch, module: ModuleType, names: tuple[str, ...]) -> None:
    right: Any = getattr(module, module.__name__.rsplit(".", 1)[-1])
    monkeypatch.setattr(module, right.__name__, lambda *values, **named: right(*values, **named) * 1.01)
    with pytest.raises(RuntimeError, match=rf"{names[0]} \[2, 24, 5, 5\]: core and the float64 reference disagree"):
        module.measure(TINY)
