"""The torch library `greedynas` that all operations are registered in, and the threads that they run on."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from greedynas_fast import _core

LIBRARY = torch.library.Library("greedynas", "DEF")  # type: ignore[no-untyped-call]


def _join_torchs_team() -> None:
    """Let operations run on the threads of torch's OpenMP runtime; without one they have threads of their own.

    Threads of their own would wait for cores on which OpenMP's go on spinning: see csrc/cpu/team.h.
    """
    name = "libtorch_cpu.so"
    try:
        # A symbol of a library is looked for in those that it needs too: in the runtime that torch itself uses.
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
        runner = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):  # another system, or a torch with other threads
        return
    _core.use_team(runner or 0)


_join_torchs_team()
