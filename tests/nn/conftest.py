"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

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
