"""Runs the `interpreted_*.py` files beside it, each in a process whose Triton interprets kernels on the CPU.

Triton reads TRITON_INTERPRET when it is imported, and an interpreted Triton compiles nothing: hence processes of their
own. To run one by hand: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted_pointwise.py`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


def _obstacle() -> str | None:
    """Why nothing can be interpreted here."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    # Triton 3.6 turns arrays of one element to scalars in a way that numpy has deprecated, and then dropped.
    if triton < (3, 7) and numpy >= (2, 4):
        return "the interpreter of Triton 3.6 needs numpy < 2.4"
    return None


OBSTACLE = _obstacle()


@pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_interpreted(path: Path) -> None:
    allowed = ["-W", "ignore:Conversion of an array:DeprecationWarning"]
    # -P: the package is the installed one, not the sources in the working directory, which have no compiled core.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *allowed, str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=path.parents[2], check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
