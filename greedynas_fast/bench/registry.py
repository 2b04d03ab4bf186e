"""The measurements by name, and a run of some of them."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from greedynas_fast.dataclass_io import nearest
from greedynas_fast.errors import InputError

from . import environment

if TYPE_CHECKING:
    from .timing import Budget

# name: what it measures. Each is a module of this package with `measure(budget) -> rows`, imported when it is run, so
# that torch starts after the variables that hold it are set.
MEASUREMENTS = {
    "filter": "paths scored a second",
    "filter_training": "paths a second through the filter's network, forward and backward",
    "sampler": "paths accepted a second by rejection at q = 0.99",
    "codec": "paths packed and unpacked a second",
    "mixconv": "images a second through a MixConv layer, forward and backward",
    "depthwise": "images a second through a depthwise convolution, forward and backward",
    "bn_act": "images a second through batch normalisation and activation, both ways",
    "squeeze_excite": "images a second through squeeze-and-excitation, both ways",
    "block": "images a second through an inverted residual, forward and backward",
    "supernet_step": "images a second through steps of supernet training",
    "step_overhead": "milliseconds of a step's update and bookkeeping",
    "score_paths": "paths scored a second on the supernet",
    "data": "images decoded and augmented a second of one core",
    "train": "images a second through a whole training, its data included",
}


def measure(names: Sequence[str] = (), quick: bool = False) -> dict[str, Any]:
    """Run measurements, in a child process where this one cannot hold its libraries to what the figures claim.

    Args:
        names: of `MEASUREMENTS`; none runs all.
        quick: fewer sizes and repetitions, and no torch.compile.

    Returns:
        `rows` (see `timing.make_row`), `machine` and `calibration`: milliseconds of a fixed piece of work before and
        after, and its spread, from which a busy machine can be told.

    Raises:
        InputError: an unknown measurement, or a CPU level in GREEDYNAS_CPU_ISA that cannot be used.
        RuntimeError: a version computes something else than the reference; then no figure is given.
    """
    for name in names:
        if name not in MEASUREMENTS:
            near = nearest(name, tuple(MEASUREMENTS))
            known = f"Did you mean {near!r}?" if near else f"Known: {', '.join(MEASUREMENTS)}."
            raise InputError(f"unknown measurement {name!r}. {known}")
    chosen = tuple(dict.fromkeys(names or MEASUREMENTS))
    result: dict[str, Any] = environment.run_held(_measure_here, chosen, quick)
    return result


def _measure_here(names: Sequence[str], quick: bool) -> dict[str, Any]:
    """Run measurements in this process."""
    from greedynas_fast.runtime import keep_freed_memory

    from . import timing

    keep_freed_memory()  # or page faults of torch's allocations, not its kernels, would be what is measured
    isa = timing.core_isa()
    budget: Budget = timing.QUICK if quick else timing.FULL
    before = timing.calibrate()
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += importlib.import_module(f"{__package__}.{name}").measure(budget)
    calibration = timing.calibration(before, timing.calibrate())
    return {"rows": rows, "machine": _machine(isa), "calibration": calibration}


def _machine(isa: str) -> dict[str, Any]:
    """What the figures depend on."""
    import numpy as np
    import torch

    from greedynas_fast import doctor

    from . import timing

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "torch_isa": timing.torch_isa(),
        "cpu": doctor.examine()["cpu"]["model"],
        "isa": isa,
        "threads": timing.thread_counts()[-1],
        "environment": {name: os.environ.get(name) for name in environment.VARIABLES},
    }
