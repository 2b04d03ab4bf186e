"""Merged operations leave: out of the supernet, out of the parameter bank, out of everything laid out as the bank is.

Compact between two steps: gradients of the new bank are zero. What is computed afterwards is the same bit for bit,
because blocks keep their order, their alignment and their values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greedynas_fast.nn import build_operation
from greedynas_fast.spaces.specs import LayerSpec
from greedynas_fast.supernet.bank import ParameterBank
from greedynas_fast.supernet.slots import room

Mask = NDArray[np.bool_]
Buffers = dict[str, Tensor]
"""An optimizer's state. What has the length of the bank is laid out like the bank; all else is left as it is."""


def compact(bank: ParameterBank, allowed: Mask, buffers: Mapping[str, Tensor]) -> tuple[ParameterBank, Buffers]:
    """Let operations leave the supernet of a bank, and give the others a bank that holds nothing else.

    Args:
        bank: not to be used afterwards, nor an optimizer made on it, unless it is the one that is returned.
        allowed: bool [L, max_ops], operations that stay; see `Supernet.keep`.
        buffers: `state_dict()` of the optimizer of `bank`.

    Returns:
        The new bank and buffers, to make a new optimizer of; what was given if no operation leaves.

    Raises:
        InputError: a mask of another shape, or one that leaves a layer without operations.
    """
    smaller = _shrunk(bank, allowed)
    return smaller, dict(buffers) if smaller is bank else _moved(buffers, _sizes(bank), _sizes(smaller))


def load_checkpoint(
    bank: ParameterBank, supernet: Mapping[str, Tensor], buffers: Mapping[str, Tensor], allowed: Mask | None = None
) -> tuple[ParameterBank, Buffers]:
    """Load the state of a supernet of the same space, whichever operations the two still have.

    Afterwards the supernet has the operations that both have had. What the checkpoint holds for an operation that has
    left is ignored; an operation for which the checkpoint holds nothing, because it was saved after a compaction,
    leaves too: it would be untrained among trained ones.

    Args:
        bank: of the supernet to load into; not to be used afterwards, unless it is the one that is returned.
        supernet: `state_dict()` of a supernet.
        buffers: `state_dict()` of the optimizer of its bank.
        allowed: bool [L, max_ops], operations to keep at most; None: all that both have. Whether an operation without
            parameters was there when the checkpoint was saved is known from here alone.

    Returns:
        The bank, compacted if an operation has left, and the buffers in its layout, for `load_state_dict` of an
        optimizer made on it.

    Raises:
        InputError: a mask of another shape, or a layer would have no operation left.
        RuntimeError: parameters are missing, or have other names or shapes.
    """
    full = _full_sizes(bank)
    held = _held(supernet, full)
    bank = _shrunk(bank, *(mask for mask in (allowed, held) if mask is not None))
    bank.net.load_state_dict(supernet)
    source = [size * int(held[layer, op]) for layer, sizes in enumerate(full) for op, size in enumerate(sizes)]
    target = _sizes(bank)
    return bank, _moved(buffers, [target[0], *source], target)


def _shrunk(bank: ParameterBank, *masks: Mask) -> ParameterBank:
    """A bank of the operations that are under all masks; the same one if that leaves all there are."""
    before = bank.net.allowed
    for mask in masks:
        bank.net.keep(mask)
    return bank if np.array_equal(bank.net.allowed, before) else ParameterBank(bank.net)


def _sizes(bank: ParameterBank) -> list[int]:
    """Floats of each block in the order of the buffer."""
    return [block.end - block.start for block in bank.blocks()]


def _moved(buffers: Mapping[str, Tensor], source: list[int], target: list[int]) -> Buffers:
    """Buffers in a layout in which some blocks are empty that are not in the source."""
    shape = (sum(source),)
    return {name: _relocated(b, source, target) if b.shape == shape else b for name, b in buffers.items()}


def _relocated(buffer: Tensor, source: list[int], target: list[int]) -> Tensor:
    parts = [part[:size] for part, size in zip(torch.split(buffer, source), target, strict=True)]
    return torch.cat(parts)


def _held(supernet: Mapping[str, Tensor], full: list[list[int]]) -> Mask:
    """Mask of the operations that a state dict holds; one without parameters counts as held."""
    present = {tuple(key.split(".")[1:3]) for key in supernet if key.startswith("layers.")}
    held = np.zeros((len(full), max(map(len, full))), dtype=np.bool_)
    for layer, sizes in enumerate(full):
        for op, size in enumerate(sizes):
            held[layer, op] = size == 0 or (str(layer), str(op)) in present
    return held


def _full_sizes(bank: ParameterBank) -> list[list[int]]:
    """Floats of the block of each operation, [layer][op]; also of those that have left, as if they had not."""
    allowed = bank.net.allowed
    blocks = [[bank.block(layer, op) for op in range(count)] for layer, count in enumerate(bank.net.space.num_ops)]
    return [
        [
            block.end - block.start if allowed[layer, op] else _size(bank.net.space.layers[layer], op)
            for op, block in enumerate(row)
        ]
        for layer, row in enumerate(blocks)
    ]


def _size(layer: LayerSpec, op: int) -> int:
    """Floats of the block of an operation; nothing is allocated for it."""
    with torch.device("meta"):
        module = build_operation(layer.ops[op], layer.in_channels, layer.out_channels, layer.stride)
    return sum(map(room, module.parameters()))
