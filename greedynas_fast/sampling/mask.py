"""Checks that the samplers share: operation masks, counts and saved states."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from greedynas_fast.errors import InputError
from greedynas_fast.sampling.protocol import Mask
from greedynas_fast.spaces import SearchSpace


def check_mask(space: SearchSpace, allowed: npt.ArrayLike | None) -> Mask:
    """The operation mask to sample under.

    Args:
        space: the search space.
        allowed: bool [L, max_ops], True where an operation may be used; None allows every operation of the space.

    Returns:
        A contiguous copy, bool [L, max_ops].

    Raises:
        InputError: wrong shape or dtype, an operation that the space lacks, or a layer without any operation.
    """
    exists = space.allowed
    if allowed is None:
        return exists
    mask = np.array(allowed, order="C")
    if mask.dtype != np.bool_ or mask.shape != exists.shape:
        raise InputError(
            f"allowed must be a boolean mask {list(exists.shape)} for the space {space.name}, "
            f"got {mask.dtype} {list(mask.shape)}."
        )
    extra = np.argwhere(mask & ~exists)
    if len(extra):
        layer, op = extra[0]
        raise InputError(f"allowed: layer {layer} of the space {space.name} has no operation {op}.")
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise InputError(f"allowed: layer {empty[0]} has no operation left; every layer needs at least one.")
    return mask


def mask_text(allowed: Mask) -> str:
    """The mask as text, one group of 0/1 a layer: a plain value for saved states."""
    return "|".join("".join("01"[int(bit)] for bit in row) for row in allowed)


def check_count(n: int, name: str = "n") -> int:
    """`n` as an int, at least 0.

    Raises:
        InputError: not a whole number or negative.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise InputError(f"{name} must be a whole number of at least 0, got {n!r}.")
    return int(n)


def check_key(seed: int, stream: int) -> tuple[int, int]:
    """Seed (64 bits) and stream (32 bits) as ints.

    Raises:
        InputError: out of range.
    """
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32)):
        if check_count(value, name) >= 2**bits:
            raise InputError(f"{name} must be below 2**{bits}, got {value}.")
    return int(seed), int(stream)


def identity(kind: str, seed: int, stream: int, allowed: Mask) -> dict[str, Any]:
    """The part of a state that says which sampler it belongs to."""
    return {"kind": kind, "seed": seed, "stream": stream, "allowed": mask_text(allowed)}


def check_identity(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a state of another sampler, seed, stream or operation mask.

    Raises:
        InputError: it names what differs.
    """
    for name, value in expected.items():
        if state.get(name) != value:
            raise InputError(f"sampler state: {name} is {state.get(name)!r}, this sampler has {value!r}.")
