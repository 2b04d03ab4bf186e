"""Clocks and statistics: versions run in turn, quantiles of their rates, and the shape of a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from greedynas_fast import _core
from greedynas_fast.errors import InputError

_CALIBRATION_LOOPS = 15
_OUT_OF_THE_RUNNING = 4  # times as long as the second fastest version, which is the best peer or the best of all


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        repeats: rounds in which every version runs once.
        call_s: seconds that one run should take.
        chunk_s: seconds above which a larger chunk of a peer is not tried.
        check_s: seconds after which a slow peer is compared with the reference on fewer paths than
        check_paths: paths that the others are compared on.
        codec_paths: batch sizes of the codec.
        compile: whether torch.compile takes part.
    """

    repeats: int
    call_s: float
    chunk_s: float
    check_s: float
    check_paths: int
    codec_paths: tuple[int, ...]
    compile: bool


FULL = Budget(9, 0.2, 1.5, 1.0, 4096, (100_000, 1_000_000), True)
QUICK = Budget(3, 0.05, 0.2, 0.2, 2048, (100_000,), False)


def core_isa() -> str:
    """The CPU level that the core uses.

    Raises:
        InputError: GREEDYNAS_CPU_ISA names a level that does not exist or that this machine cannot run.
    """
    try:
        return _core.cpu_isa()
    except ValueError as error:  # std::invalid_argument of the core
        raise InputError(str(error)) from None


def torch_isa() -> str:
    """The level of torch's own kernels, such as `avx2`."""
    return torch.backends.cpu.get_cpu_capability().lower()


def thread_counts() -> tuple[int, ...]:
    """One thread, and all of them if there are more."""
    return tuple(sorted({1, _core.num_threads()}))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Hold torch to `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternate(
    runs: Mapping[str, Callable[[], int]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run the versions in turn (A B A B ...), so that a change of the machine's speed meets all of them.

    Args:
        runs: each handles some paths and returns how many; all have run once before.
        repeats: rounds.
        clock: seconds.

    Returns:
        Paths a second of every run.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            count = run()
            rates[name].append(count / (clock() - start))
    return rates


def alternate_steps(steps: Mapping[str, Callable[[], object]], images: int, budget: Budget) -> dict[str, list[float]]:
    """Run training steps in turn; of short ones many make a run, `call_s` long with the slowest.

    So every version is met at work, with its own code and data in the caches, and not as it comes after the others.

    A version that can't be the best peer, and whose step lasts longer than a run should, has one rate, that of the
    better of two steps: torch's layers in bf16 may take a minute for what others do in seconds, where no instruction
    helps them.

    Args:
        steps: one step each; all have run once before.
        images: that a step handles.
        budget: for how long.

    Returns:
        Images a second of every run.
    """
    seconds = {name: _seconds(step) for name, step in steps.items()}
    slow = max(budget.call_s, _OUT_OF_THE_RUNNING * sorted(seconds.values())[:2][-1])
    for name in steps:
        if seconds[name] > slow:  # once may be by chance
            seconds[name] = min(seconds[name], _seconds(steps[name]))
    running = [name for name in steps if seconds[name] <= slow]
    count = max(1, round(budget.call_s / max(seconds[name] for name in running)))
    rates = alternate({name: _repeated(steps[name], count, images) for name in running}, budget.repeats)
    return {name: rates.get(name, [images / seconds[name]]) for name in steps}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _repeated(step: Callable[[], object], count: int, images: int) -> Callable[[], int]:
    def repeated() -> int:
        for _ in range(count):
            step()
        return count * images

    return repeated


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile."""
    low, middle, high = np.percentile(values, [20, 50, 80]).tolist()
    return {"p20": low, "p50": middle, "p80": high}


def make_row(name: str, provider: str, isa: str, threads: int, **values: Any) -> dict[str, Any]:
    """One row of the result.

    Args:
        name: the measurement, such as `codec.pack`.
        provider: the version that was measured.
        isa: the instruction set that it may use; `-` where nothing holds or names it.
        threads: that it may use.
        values: replace the None of the other keys, or add keys of this measurement alone.

    Returns:
        `paths` (that a run handles, about), `repeats`, `paths_per_s` (p20, p50, p80), `ratio_to_best_peer` (p50 to
        p50), `peer` (the provider that this is a ratio to), `max_error` and `decision_agreement` (with the float64
        reference), `note`, and `skipped`: why there is no figure.
    """
    keys = ("paths", "repeats", "paths_per_s", "ratio_to_best_peer", "peer", "max_error", "decision_agreement")
    row: dict[str, Any] = {"name": name, "provider": provider, "isa": isa, "threads": threads}
    return row | dict.fromkeys(keys) | {"note": "", "skipped": None} | values


def rate_values(rates: Mapping[str, Sequence[float]], provider: str, peer: str) -> dict[str, Any]:
    """The values of a row that come from `alternate`."""
    own = quantiles(rates[provider])
    ratio = own["p50"] / quantiles(rates[peer])["p50"]
    return {"repeats": len(rates[provider]), "paths_per_s": own, "ratio_to_best_peer": ratio, "peer": peer}


def fastest(rates: Mapping[str, Sequence[float]], among: Sequence[str]) -> str:
    """The provider with the highest median."""
    return max(among, key=lambda provider: float(np.median(rates[provider])))


def calibrate() -> list[float]:
    """Milliseconds of a fixed piece of work in Python and numpy, on one thread."""
    values = np.random.default_rng(0).standard_normal(300_000)
    times = []
    for _ in range(1 + _CALIBRATION_LOOPS):
        start = time.perf_counter()
        np.sort(values)
        np.exp(values).sum()
        sum(index * index for index in range(100_000))
        times.append((time.perf_counter() - start) * 1e3)
    return times[1:]  # the first one also meets cold memory


def calibration(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Calibration loops before and after as `before_ms`, `after_ms` and `spread`, (p80 - p20) / p50 of all of them."""
    both = quantiles([*before, *after])
    spread = (both["p80"] - both["p20"]) / both["p50"]
    return {"before_ms": quantiles(before), "after_ms": quantiles(after), "spread": spread}
