"""A profile of some steps of a loop, as a Chrome trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from greedynas_fast.runtime.atomic import explain_write_error

# Steps before the first one that counts: caches fill, kernels are chosen, the profiler itself starts.
WARM_UP_STEPS = 3


@contextmanager
def profiled(
    path: Path, steps: int, notify: Callable[[str], None], *, cuda: bool = False
) -> Iterator[Callable[[], None]]:
    """Profile `steps` steps of the loop in the context, after `WARM_UP_STEPS` others.

    The trace opens in chrome://tracing or ui.perfetto.dev. A loop that ends early leaves the steps that it did; one
    that ends in the warm-up leaves nothing and says so.

    Args:
        path: the trace, JSON; its folder is made. One that is there is replaced.
        steps: how many; 0 profiles nothing.
        notify: is told one sentence, where the trace is or why there is none.
        cuda: whether kernels of a GPU are recorded too.

    Yields:
        A function to call after each step; it does nothing when there is nothing to profile (any more).

    Raises:
        InputError: the trace cannot be written.
    """
    if steps == 0:
        yield _nothing
        return
    profile = _Profile(path, steps, notify, cuda)
    try:
        yield profile.step
    finally:
        profile.end()


def _nothing() -> None:
    pass


class _Profile:
    def __init__(self, path: Path, steps: int, notify: Callable[[str], None], cuda: bool) -> None:
        self._path, self._steps, self._notify = path, steps, notify
        activities = [torch.profiler.ProfilerActivity.CPU]
        if cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._running = ExitStack()
        self._profiler: Any = self._running.enter_context(
            torch.profiler.profile(
                activities=activities,
                schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP_STEPS, active=steps, repeat=1),
                on_trace_ready=self._write,
                acc_events=True,  # there is one cycle; without this torch 2.11 warns of what it does between cycles
            )
        )
        self._done = 0

    def step(self) -> None:
        """Count a step; the last one ends the profile."""
        if self._profiler is None:
            return
        self._done += 1
        self._profiler.step()
        if self._done == WARM_UP_STEPS + self._steps:
            self.end()

    def end(self) -> None:
        """Write what there is; a second call does nothing."""
        if self._profiler is None:
            return
        self._profiler = None
        self._running.close()
        if self._done <= WARM_UP_STEPS:
            self._notify(
                f"profile: no trace, for only {self._done} steps were done, {WARM_UP_STEPS} of them to warm up"
            )

    def _write(self, profiler: torch.profiler.profile) -> None:
        steps = min(self._done - WARM_UP_STEPS, self._steps)
        if steps < 1:
            return
        temp = self._path.with_name(f".{self._path.stem}.{os.getpid()}.json")  # torch compresses by the name's end
        try:
            self._path.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(temp))
            os.replace(temp, self._path)
        except OSError as error:
            with suppress(OSError):
                temp.unlink()
            raise explain_write_error(error, self._path) from error
        self._notify(f"profile of {steps} steps: {self._path} (open it in ui.perfetto.dev or chrome://tracing)")
