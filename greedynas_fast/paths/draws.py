"""Random paths and variations of paths. Each row is a pure function of its index: batches may be cut anywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from greedynas_fast import _core
from greedynas_fast.errors import InputError, call
from greedynas_fast.paths.arrays import Paths, as_mask, as_operations, check_bits, check_probability


def propose(allowed: npt.ArrayLike, seed: int, stream: int, start: int, count: int) -> Paths:
    """Draw paths uniformly over the allowed operations of each layer.

    Row `j` is proposal `start + j`, a pure function of (seed, stream, allowed, start + j): it does not depend on the
    batch in which it is drawn (Philox4x32-10, no modulo bias).

    Args:
        allowed: bool [L, N], True where an operation may be drawn; every layer needs one.
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1; draws for different purposes use different streams.
        start: index of the first proposal, 0 .. 2**64 - 1.
        count: number of proposals.

    Returns:
        Paths, uint8 [count, L].

    Raises:
        InputError: an empty layer, a wrong shape, or a number out of range.
    """
    mask = as_mask(allowed, "propose")
    counter = _counter("propose", seed, stream, start)
    count = check_bits("propose", "count", count, 40)
    layers, operations = mask.shape
    paths = np.empty((count, layers), dtype=np.uint8)
    call(_core.propose, mask.ctypes.data, layers, operations, *counter, count, paths.ctypes.data)
    return paths


def propose_at(allowed: npt.ArrayLike, seed: int, stream: int, numbers: npt.ArrayLike) -> Paths:
    """Proposals of any numbers, as `propose` draws them.

    Args:
        allowed: as for `propose`.
        seed: as for `propose`.
        stream: as for `propose`.
        numbers: uint64 [n].

    Returns:
        Paths, uint8 [n, L]; row `j` is proposal `numbers[j]`.

    Raises:
        InputError: as for `propose`, or numbers of another shape or dtype.
    """
    mask = as_mask(allowed, "propose_at")
    seed, stream, _ = _counter("propose_at", seed, stream, 0)
    array = np.asarray(numbers)
    if array.ndim != 1 or array.dtype != np.uint64:
        raise InputError(f"propose_at: numbers must be uint64 [n], got {array.dtype} {list(array.shape)}")
    array = np.ascontiguousarray(array)
    layers, operations = mask.shape
    paths = np.empty((len(array), layers), dtype=np.uint8)
    address = mask.ctypes.data
    call(_core.propose_at, address, layers, operations, seed, stream, array.ctypes.data, len(array), paths.ctypes.data)
    return paths


def crossover(parents: npt.ArrayLike, probability: float, seed: int, stream: int, start: int) -> Paths:
    """Uniform crossover: two children from two parents, each operation of a child from either, half and half.

    Pair `j` is a pure function of (parents[j], probability, seed, stream, start + j). Its draws differ from those of
    `propose` and `mutate` with the same seed, stream and index.

    Args:
        parents: operation indices [m, 2, L], integers 0..31, L 1..25.
        probability: of crossing a pair, 0..1, rounded to a multiple of 2**-32; otherwise its children are copies.
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1.
        start: index of the first pair, 0 .. 2**64 - 1.

    Returns:
        Children, uint8 [2 m, L], those of pair `j` in rows `2 j` and `2 j + 1`: where one has the first parent's
        operation, the other has the second's.

    Raises:
        InputError: a wrong shape or dtype, or a number out of range.
    """
    array = as_operations(parents, "crossover: parents", "[m, 2, L]", ndim=3)
    pairs, two, layers = array.shape
    if two != 2:
        raise InputError(f"crossover: parents must be [m, 2, L], got shape {list(array.shape)}")
    probability = check_probability("crossover", probability)
    counter = _counter("crossover", seed, stream, start)
    children = np.empty((2 * pairs, layers), dtype=np.uint8)
    call(_core.crossover, array.ctypes.data, pairs, layers, probability, *counter, children.ctypes.data)
    return children


def mutate(
    paths: npt.ArrayLike, allowed: npt.ArrayLike, probability: float, seed: int, stream: int, start: int
) -> Paths:
    """Change each layer, by itself, with `probability` to another allowed operation, all equally likely.

    Row `j` is a pure function of (paths[j], allowed, probability, seed, stream, start + j). Its draws differ from those
    of `propose` and `crossover` with the same seed, stream and index.

    Args:
        paths: operation indices [n, L], integers, L 1..25.
        allowed: bool [L, N], True where an operation may stand; a layer with a single one never changes.
        probability: of changing a layer, 0..1, rounded to a multiple of 2**-32.
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1.
        start: index of the first path, 0 .. 2**64 - 1.

    Returns:
        Mutated copies, uint8 [n, L].

    Raises:
        InputError: a wrong shape or dtype, a number out of range, or an operation that is not allowed.
    """
    array = as_operations(paths, "mutate: paths")
    mask = as_mask(allowed, "mutate")
    n, layers = array.shape
    if len(mask) != layers:
        raise InputError(f"mutate: allowed has {len(mask)} layers, the paths have {layers}")
    probability = check_probability("mutate", probability)
    counter = _counter("mutate", seed, stream, start)
    mutated = np.empty_like(array)
    call(
        _core.mutate,
        array.ctypes.data,
        n,
        mask.ctypes.data,
        layers,
        mask.shape[1],
        probability,
        *counter,
        mutated.ctypes.data,
    )
    return mutated


def _counter(function: str, seed: int, stream: int, start: int) -> tuple[int, int, int]:
    return (
        check_bits(function, "seed", seed, 64),
        check_bits(function, "stream", stream, 32),
        check_bits(function, "start", start, 64),
    )
