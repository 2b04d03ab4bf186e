"""Finds the Triton kernels of `kernels/`, and says what is missing where there is no Triton.

An installation has them as `greedynas_fast.kernels`; in a source checkout they lie beside the package, and importing
this file makes them known under the same name. Triton itself is imported with the first kernel.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greedynas_fast.errors import InputError

__all__ = ["available", "backend", "load"]

_PACKAGE = "greedynas_fast.kernels"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _find_in_checkout() -> None:
    """Register `<checkout>/kernels` as greedynas_fast.kernels if the package has no such folder."""
    folder = Path(__file__).resolve().parents[2] / "kernels"
    if _PACKAGE in sys.modules or importlib.util.find_spec(_PACKAGE) is not None or not folder.is_dir():
        return
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    importlib.import_module("greedynas_fast").kernels = package  # type: ignore[attr-defined]


_find_in_checkout()


@functools.cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def load(name: str) -> Any:
    """The module `greedynas_fast.kernels.<name>`.

    Raises:
        InputError: no Triton.
    """
    if not available():
        raise InputError("the op-masked layers need Triton on a GPU: `pip install triton`, or use the CPU")
    return importlib.import_module(f"{_PACKAGE}.{name}")


def backend(x: Tensor) -> str:
    """`triton` for float32, bfloat16 and float16 on CUDA where Triton is installed, `reference` for all else."""
    return "triton" if x.is_cuda and x.dtype in _DTYPES and available() else "reference"
