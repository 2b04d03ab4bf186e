"""The compiled core: addresses and sizes in, results written in place. Use `greedynas_fast.paths` and `.filter`."""

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

# The rest only in a build with CUDA. `device` is an index, `stream` a cudaStream_t of that device, `shape` (layers,
# operations, hidden), `parameters` addresses of tables, recurrent, fc1 weight and bias, fc2 weight and bias. Addresses
# are device memory but `allowed`, `num_ops` and `pinned_host`.
CUDA_REJECTION_HOST_BYTES: int

def cuda_reason_against(device: int) -> str: ...
def cuda_propose(
    device: int,
    stream: int,
    allowed: int,
    layers: int,
    max_operations: int,
    seed: int,
    stream_number: int,
    start: int,
    count: int,
    paths: int,
    /,
) -> None: ...
def cuda_pack(device: int, stream: int, paths: int, n: int, layers: int, keys: int, first_bad: int, /) -> None: ...
def cuda_unpack(device: int, stream: int, keys: int, n: int, layers: int, paths: int, first_bad: int, /) -> None: ...
def cuda_sort_workspace_bytes(device: int, n: int, /) -> int: ...
def cuda_sort_keys(device: int, stream: int, keys: int, n: int, ordered: int, workspace: int, /) -> None: ...
def cuda_unique_workspace_bytes(n: int, /) -> int: ...
def cuda_unique_keys(
    device: int, stream: int, ordered: int, n: int, unique: int, count: int, workspace: int, /
) -> None: ...
def cuda_find_keys(
    device: int, stream: int, ordered: int, n: int, queries: int, num_queries: int, found: int, /
) -> None: ...
def cuda_weights_bytes(shape: list[int], bf16: bool, /) -> int: ...
def cuda_prepare(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    num_ops: list[int],
    parameters: list[int],
    weights: int,
    /,
) -> None: ...
def cuda_score_workspace_bytes(shape: list[int], n: int, /) -> int: ...
def cuda_score(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    paths: int,
    keys: int,
    n: int,
    log_weak: int,
    status: int,
    workspace: int,
    /,
) -> None: ...
def cuda_rejection_workspace_bytes(shape: list[int], chunk: int, /) -> int: ...
def cuda_reject(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    allowed: int,
    seed: int,
    stream_number: int,
    start: int,
    wanted: int,
    limit: int,
    threshold: float,
    chunk: int,
    accepted: int,
    workspace: int,
    pinned_host: int,
    /,
) -> tuple[int, int]: ...
def cuda_fallback_workspace_bytes(device: int, shape: list[int], chunk: int, count: int, /) -> int: ...
def cuda_lowest_rejected(
    device: int,
    stream: int,
    shape: list[int],
    bf16: bool,
    weights: int,
    allowed: int,
    seed: int,
    stream_number: int,
    start: int,
    limit: int,
    threshold: float,
    chunk: int,
    count: int,
    numbers: int,
    workspace: int,
    /,
) -> None: ...
