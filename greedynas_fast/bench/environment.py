"""Variables that hold the peers to what the figures claim. Libraries read them once, when they start."""

from __future__ import annotations

import contextlib
import getpass
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Threads that spin while they wait slow an LSTM a hundredfold on shared cores; numpy's own threads can only be counted
# before it starts.
ALWAYS = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"}

# The instruction sets of torch's own kernels, of oneDNN and of MKL at each forced level of the core. At the level
# `portable` torch stays free: it has nothing as low.
HELD = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "avx512_bf16": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
CACHE = "TORCHINDUCTOR_CACHE_DIR"
VARIABLES = ("GREEDYNAS_CPU_ISA", *ALWAYS, *HELD["avx2"], CACHE)


def _wanted() -> dict[str, str]:
    level = os.environ.get("GREEDYNAS_CPU_ISA", "")
    # torch.compile finds kernels in its cache that it made for another instruction set, and then gives wrong numbers or
    # writes beyond its memory (torch 2.14.1).
    cache = os.path.join(tempfile.gettempdir(), f"greedynas-inductor-{getpass.getuser()}-{level or 'free'}")
    return {**ALWAYS, **HELD.get(level, {}), CACHE: cache}


def missing() -> dict[str, str]:
    """The variables that this process was not started with, and the values that they need."""
    wanted = _wanted()
    return {name: value for name, value in wanted.items() if os.environ.get(name) != value}


def run_held(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` where the variables are set: here, or in a child process if some are missing.

    Args:
        function: importable by name; arguments and result can be pickled.
        arguments: for `function`.
        named: for `function`.

    Returns:
        What `function` returns; what it raises is raised here too.
    """
    variables = missing()
    if not variables:
        return function(*arguments, **named)
    listed = " ".join(f"{name}={value}" for name, value in variables.items())
    print(f"bench: measuring in a child process with {listed}", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("spawn")
    with (
        _set(variables),
        ProcessPoolExecutor(1, mp_context=context, initializer=_print_to_stderr) as pool,
    ):
        return pool.submit(function, *arguments, **named).result()


@contextlib.contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _print_to_stderr() -> None:
    """Standard output belongs to the parent's result."""
    sys.stdout = sys.stderr
