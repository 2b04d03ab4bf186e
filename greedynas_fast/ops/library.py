"""The torch library `greedynas` that all operations are registered in, and the threads that they run on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from greedynas_fast import _core

_Function = TypeVar("_Function", bound=Callable[..., Any])

_FEW_SPINS = 10_000  # of OpenMP's: a fraction of a millisecond
_LIBRARY = torch.library.Library("greedynas", "DEF")  # type: ignore[no-untyped-call]


# torch.library without types, in one place.
def define(schema: str) -> None:
    """Define the operator `greedynas::<schema>`."""
    _LIBRARY.define(schema)  # type: ignore[no-untyped-call]


def implement(name: str, function: Callable[..., Any], key: str = "CPU") -> None:
    """Let `function` run the operator for a dispatch key."""
    _LIBRARY.impl(name, function, key)  # type: ignore[no-untyped-call]


def fake(name: str) -> Callable[[_Function], _Function]:
    """A decorator: the function gives the operator's outputs without values, for tracing."""
    decorator: Callable[[_Function], _Function] = torch.library.register_fake(f"greedynas::{name}", lib=_LIBRARY)
    return decorator


def _openmp_spins() -> bool:
    """Whether torch's OpenMP threads spin for long when they have nothing to do: by default they do."""
    count = os.environ.get("GOMP_SPINCOUNT")
    if count is None:
        return os.environ.get("OMP_WAIT_POLICY", "").strip().lower() != "passive"
    try:
        return int(count) > _FEW_SPINS
    except ValueError:  # "1M", "INFINITE"
        return True


def _join_torchs_team() -> None:
    """Let operations run on the threads of torch's OpenMP runtime; without one they have threads of their own.

    Threads of their own would wait for cores on which OpenMP's go on spinning: see csrc/cpu/team.h.
    """
    try:
        # A symbol of a library is looked for in those that it needs too: in the runtime that torch itself uses.
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        runner, number = (
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (runtime.GOMP_parallel, runtime.omp_get_thread_num)
        )
    except (OSError, AttributeError):  # another system, or a torch with other threads
        return
    _core.use_team(runner or 0, number or 0)


if _openmp_spins():
    _join_torchs_team()
