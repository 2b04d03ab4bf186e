"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture
def thread_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterator[int]]:
    """1, 2 and 4 threads, which the core has while a test goes through them."""
    import torch

    def each() -> Iterator[int]:
        for count in (1, 2, 4):
            monkeypatch.setenv("GREEDYNAS_NUM_THREADS", str(count))
            yield count

    before = torch.get_num_threads()
    torch.set_num_threads(4)  # the core takes no more than torch
    yield each()
    torch.set_num_threads(before)
