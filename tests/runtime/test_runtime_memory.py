"""Freed memory stays with the process: no page faults for what is allocated again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from greedynas_fast.runtime import keep_freed_memory

_SCRIPT = """
import resource, sys
import numpy as np
from greedynas_fast.runtime import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
def use():
    for _ in range(20):
        np.ones(60_000_000, np.uint8)  # above any threshold that glibc adapts to
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, mode], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_is_used_again() -> None:
    kept, count = faults("keep")
    if kept == "False":
        pytest.skip("this C library is not glibc, or the environment sets malloc")
    (without,) = faults("give back")
    assert int(count) < 100 < int(without)


def test_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert keep_freed_memory() is False
