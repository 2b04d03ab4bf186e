"""What a long-running command needs around its work, and nothing about architecture search.

The run folder and its lock, the processes of a job, atomic files, checkpoints, logs that can be cut back to a
checkpoint, progress, profiles, seeds, devices, signals. This room imports none of the other rooms.
"""

from __future__ import annotations

from greedynas_fast.runtime.atomic import atomic_write
from greedynas_fast.runtime.checkpoints import CheckpointStore
from greedynas_fast.runtime.determinism import generator, make_deterministic, seed_for, seed_generators, set_threads
from greedynas_fast.runtime.device import resolve_device
from greedynas_fast.runtime.distributed import World, all_reduce, local_size, open_world
from greedynas_fast.runtime.folder import RunFolder, read_json, write_json
from greedynas_fast.runtime.interrupt import Interrupt
from greedynas_fast.runtime.lines import LineLog
from greedynas_fast.runtime.memory import keep_freed_memory
from greedynas_fast.runtime.metrics import MetricsLog, read_rows
from greedynas_fast.runtime.profile import profiled
from greedynas_fast.runtime.progress import Progress
from greedynas_fast.runtime.stopwatch import Stopwatch
from greedynas_fast.runtime.waiting import Waiting

__all__ = [
    "CheckpointStore",
    "Interrupt",
    "LineLog",
    "MetricsLog",
    "Progress",
    "RunFolder",
    "Stopwatch",
    "Waiting",
    "World",
    "all_reduce",
    "atomic_write",
    "generator",
    "keep_freed_memory",
    "local_size",
    "make_deterministic",
    "open_world",
    "profiled",
    "read_json",
    "read_rows",
    "resolve_device",
    "seed_for",
    "seed_generators",
    "set_threads",
    "write_json",
]
