"""Paths as packed keys, sets of keys, and draws of paths that are a pure function of their index.

A path is one operation index a layer. Batches are uint8 arrays `[n, L]`; a key is 128 bits, 5 bits an operation, as two
uint64 words `[n, 2]` (high, low), so that keys order like the paths. The arithmetic is in the compiled core.
"""

from greedynas_fast.paths.arrays import MAX_LAYERS, MAX_OPERATIONS, Keys, Paths
from greedynas_fast.paths.codec import pack, unpack
from greedynas_fast.paths.draws import crossover, mutate, propose, propose_at
from greedynas_fast.paths.keys import KeySet, UniqueKeys, sort_keys, unique_keys

__all__ = [
    "MAX_LAYERS",
    "MAX_OPERATIONS",
    "KeySet",
    "Keys",
    "Paths",
    "UniqueKeys",
    "crossover",
    "mutate",
    "pack",
    "propose",
    "propose_at",
    "sort_keys",
    "unique_keys",
    "unpack",
]
