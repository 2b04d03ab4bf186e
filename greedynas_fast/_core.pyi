"""The compiled core: addresses and sizes in, results written in place. Use `greedynas_fast.paths`."""

from collections.abc import Sequence
from typing import TypedDict

BITS_PER_OPERATION: int
MAX_OPERATIONS: int
MAX_LAYERS: int
MAX_FILTER_WEIGHT: float

class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    cuda: bool
    cuda_architectures: tuple[str, ...]
    cpu_levels: tuple[str, ...]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def cpu_isa_available(name: str) -> bool: ...
def num_threads() -> int: ...
def pack(paths: int, n: int, layers: int, keys: int) -> None: ...
def unpack(keys: int, n: int, layers: int, paths: int) -> None: ...
def propose(
    allowed: int, layers: int, max_operations: int, seed: int, stream: int, start: int, count: int, paths: int
) -> None: ...
def propose_at(
    allowed: int, layers: int, max_operations: int, seed: int, stream: int, numbers: int, count: int, paths: int
) -> None: ...
def sort_keys(keys: int, n: int) -> None: ...
def unique_keys(keys: int, n: int, unique: int, first: int, inverse: int) -> int: ...
def crossover(
    parents: int, pairs: int, layers: int, probability: float, seed: int, stream: int, start: int, children: int
) -> None: ...
def mutate(
    paths: int,
    n: int,
    allowed: int,
    layers: int,
    max_operations: int,
    probability: float,
    seed: int,
    stream: int,
    start: int,
    mutated: int,
) -> None: ...

class KeySet:
    def __init__(self) -> None: ...
    def insert(self, keys: int, n: int, fresh: int) -> int: ...
    def contains(self, keys: int, n: int, found: int) -> None: ...
    def size(self) -> int: ...
    def export_keys(self, out: int, capacity: int) -> int: ...

class FilterModel:
    def __init__(
        self, num_ops: Sequence[int], operations: int, hidden: int, precision: str, parameters: Sequence[int]
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def score(self, paths: int, n: int, threads: int, log_weak: int) -> None: ...
    def score_keys(self, keys: int, n: int, threads: int, log_weak: int) -> None: ...
    def reject(
        self,
        allowed: int,
        seed: int,
        stream: int,
        start: int,
        wanted: int,
        limit: int,
        threshold: float,
        want_fallbacks: bool,
        threads: int,
    ) -> tuple[bytes, bytes, int]: ...
