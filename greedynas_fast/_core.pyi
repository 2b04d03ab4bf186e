"""The compiled core: addresses and sizes in, results written in place. Use `greedynas_fast.paths`."""

from typing import TypedDict

BITS_PER_OPERATION: int
MAX_OPERATIONS: int
MAX_LAYERS: int

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
