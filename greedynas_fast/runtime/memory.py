"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, <malloc.h>
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for what it allocates next, instead of giving it back to the system.

    torch has no cache of its own on the CPU: every tensor of a training step is allocated anew. Large ones are then new
    pages each time, which the system clears and maps one by one; in small networks that takes a fifth of a step.
    The process stays as large as it has once been. Nothing is done where the C library is not glibc, and where the
    environment says already what malloc shall do.

    Returns:
        Whether it does.
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
