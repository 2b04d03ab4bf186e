"""Paths, keys and sets of keys on a CUDA device: what `greedynas_fast.paths` computes, bit for bit.

Work is queued on torch's current stream of the device. Keys are uint64 [n, 2] (high, low); int64 tensors of the same
bits are taken too, since torch can do little with uint64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast._cuda import index_of, memory, require_device, stream_of
from greedynas_fast.errors import InputError, call

MAX_LAYERS = _core.MAX_LAYERS


def propose(
    allowed: npt.ArrayLike, seed: int, stream: int, start: int, count: int, device: torch.device | str = "cuda"
) -> Tensor:
    """Draw paths uniformly over the allowed operations, the same as `greedynas_fast.paths.propose`.

    Args:
        allowed: bool [L, N] in host memory; every layer needs an allowed operation.
        seed: 0 .. 2**64 - 1.
        stream: 0 .. 2**32 - 1, of random numbers.
        start: index of the first proposal, 0 .. 2**64 - 1.
        count: number of proposals.
        device: CUDA device of the result.

    Returns:
        uint8 [count, L].

    Raises:
        InputError: an unusable device, an empty layer, a wrong shape, or a number out of range.
    """
    target = require_device(device)
    mask = as_mask(allowed, "propose: allowed")
    check_numbers("propose", seed=(seed, 64), stream=(stream, 32), start=(start, 64), count=(count, 40))
    layers, operations = mask.shape
    paths = torch.empty((count, layers), dtype=torch.uint8, device=target)
    with torch.cuda.device(target):
        call(
            _core.cuda_propose,
            index_of(target),
            stream_of(target),
            mask.ctypes.data,
            layers,
            operations,
            int(seed),
            int(stream),
            int(start),
            int(count),
            paths.data_ptr(),
        )
    return paths


def pack(paths: Tensor) -> Tensor:
    """Pack paths into keys.

    Args:
        paths: uint8 [n, L] on a CUDA device, L 1..25.

    Returns:
        uint64 [n, 2] there.

    Raises:
        InputError: wrong device, dtype or shape, or an operation above 31.
    """
    if paths.ndim != 2 or paths.dtype != torch.uint8:
        raise InputError(f"pack: paths must be uint8 [n, L], got {paths.dtype} {list(paths.shape)}")
    device = require_device(paths.device)
    paths = paths.contiguous()
    n, layers = paths.shape
    keys = torch.empty((n, 2), dtype=torch.uint64, device=device)
    bad = torch.empty(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        where = (index_of(device), stream_of(device))
        call(_core.cuda_pack, *where, paths.data_ptr(), n, layers, keys.data_ptr(), bad.data_ptr())
    first = int(bad.item())
    if first >= 0:
        raise InputError(f"pack: path {first} has operation {int(paths[first].max())}, a key holds 0 to 31")
    return keys


def unpack(keys: Tensor, num_layers: int) -> Tensor:
    """The inverse of `pack`.

    Args:
        keys: uint64 or int64 [n, 2] on a CUDA device.
        num_layers: layers L of the paths, 1..25.

    Returns:
        uint8 [n, L] there.

    Raises:
        InputError: wrong device, dtype or shape, or keys of longer paths.
    """
    keys, device = as_keys(keys, "unpack: keys")
    if not 1 <= num_layers <= MAX_LAYERS:
        raise InputError(f"unpack: num_layers must be 1 to {MAX_LAYERS}, got {num_layers}")
    paths = torch.empty((len(keys), num_layers), dtype=torch.uint8, device=device)
    bad = torch.empty(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        where = (index_of(device), stream_of(device))
        call(_core.cuda_unpack, *where, keys.data_ptr(), len(keys), num_layers, paths.data_ptr(), bad.data_ptr())
    first = int(bad.item())
    if first >= 0:
        raise InputError(f"unpack: key {first} holds more than {num_layers} layers")
    return paths


def sort_keys(keys: Tensor) -> Tensor:
    """Keys in ascending order, as unsigned 128-bit numbers.

    Args:
        keys: uint64 or int64 [n, 2] on a CUDA device.

    Returns:
        uint64 [n, 2] there.

    Raises:
        InputError: wrong device, dtype or shape.
    """
    keys, device = as_keys(keys, "sort_keys: keys")
    result = torch.empty((len(keys), 2), dtype=torch.uint64, device=device)
    if len(keys) == 0:
        return result
    with torch.cuda.device(device):
        index = index_of(device)
        workspace = memory(_core.cuda_sort_workspace_bytes(index, len(keys)), device)
        addresses = (keys.data_ptr(), len(keys), result.data_ptr(), workspace.data_ptr())
        call(_core.cuda_sort_keys, index, stream_of(device), *addresses)
    return result


def unique_keys(keys: Tensor) -> Tensor:
    """Each key once, in ascending order.

    Args:
        keys: uint64 or int64 [n, 2] on a CUDA device, in any order.

    Returns:
        uint64 [m, 2] there, m <= n.

    Raises:
        InputError: wrong device, dtype or shape.
    """
    ordered = sort_keys(keys)
    device = ordered.device
    result = torch.empty_like(ordered)
    count = torch.zeros(1, dtype=torch.int64, device=device)
    with torch.cuda.device(device):
        index = index_of(device)
        workspace = memory(_core.cuda_unique_workspace_bytes(index, len(ordered)), device)
        addresses = (ordered.data_ptr(), len(ordered), result.data_ptr(), count.data_ptr(), workspace.data_ptr())
        call(_core.cuda_unique_keys, index, stream_of(device), *addresses)
    return result[: int(count.item())]


def find_keys(ordered: Tensor, queries: Tensor) -> Tensor:
    """Which of the queries are in a set of keys.

    Args:
        ordered: uint64 or int64 [n, 2] on a CUDA device, ascending, as `sort_keys` and `unique_keys` return them.
        queries: uint64 or int64 [m, 2] on the same device.

    Returns:
        bool [m] there.

    Raises:
        InputError: wrong device, dtype or shape.
    """
    ordered, device = as_keys(ordered, "find_keys: ordered")
    queries, other = as_keys(queries, "find_keys: queries")
    if device != other:
        raise InputError(f"find_keys: queries must be on {device}, got {other}")
    found = torch.empty(len(queries), dtype=torch.bool, device=device)
    with torch.cuda.device(device):
        addresses = (ordered.data_ptr(), len(ordered), queries.data_ptr(), len(queries), found.data_ptr())
        call(_core.cuda_find_keys, index_of(device), stream_of(device), *addresses)
    return found


def as_mask(allowed: npt.ArrayLike, name: str) -> npt.NDArray[np.bool_]:
    """`allowed` as a contiguous bool array [L, N]."""
    mask = np.asarray(allowed)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise InputError(f"{name} must be bool [L, N], got {mask.dtype} {list(mask.shape)}")
    return np.ascontiguousarray(mask)


def as_keys(keys: Tensor, name: str) -> tuple[Tensor, torch.device]:
    """Contiguous keys as int64, which torch can copy everywhere, and their device."""
    if keys.ndim != 2 or keys.shape[1] != 2 or keys.dtype not in (torch.uint64, torch.int64):
        raise InputError(f"{name} must be uint64 [n, 2], got {keys.dtype} {list(keys.shape)}")
    return keys.view(torch.int64).contiguous(), require_device(keys.device)


def check_numbers(function: str, **numbers: tuple[int, int]) -> None:
    """Each number (value, bits) must be 0 to 2**bits - 1."""
    for name, (value, bits) in numbers.items():
        if not 0 <= value < 2**bits:
            raise InputError(f"{function}: {name} must be 0 to 2**{bits} - 1, got {value}")
