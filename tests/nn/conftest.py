"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from greedynas_fast.nn import in_turn as in_turn_module
from greedynas_fast.ops import direct


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[direct.Laid]:
    """What has run without operators."""
    seen: list[direct.Laid] = []
    run = direct.run

    def spy(x: Tensor, laid: direct.Laid, parameters: Sequence[Tensor], given: Any = None) -> Tensor:
        seen.append(laid)
        return run(x, laid, parameters, given)

    monkeypatch.setattr(direct, "run", spy)
    return seen


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the layers that ran as one."""
    seen: list[list[str]] = []
    run = in_turn_module.run_chain

    def spy(x: Tensor, layers: list[direct.Laid], *others: Any) -> Tensor:
        seen.append([laid.name for laid in layers])
        return run(x, layers, *others)

    monkeypatch.setattr(in_turn_module, "run_chain", spy)
    return seen
