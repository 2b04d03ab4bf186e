"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from greedynas_fast import _core


@pytest.fixture(params=_core.build_info()["cpu_levels"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU level that the core is held to, one after the other; those that this machine lacks are skipped."""
    name: str = request.param
    if not _core.cpu_isa_available(name):
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setenv("GREEDYNAS_CPU_ISA", name)
    assert _core.cpu_isa() == name
    return name
