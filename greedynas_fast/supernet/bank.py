"""One flat buffer for all parameters of a supernet, so that a step touches the operations of its path and nothing else.

Order: stem and head (layer -1), then (layer, operation). Each of them is one contiguous block, in which the parameters
with weight decay come before those without (batch norm and biases). Operations without parameters, and those that have
left the supernet, have empty blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from greedynas_fast.errors import InputError
from greedynas_fast.ops.direct import Flat, adding_to_grad
from greedynas_fast.supernet.choices import Path
from greedynas_fast.supernet.slots import Slot, room
from greedynas_fast.supernet.supernet import Supernet


@dataclass(frozen=True)
class Block:
    """Where the parameters of one operation lie: `[start, end)`, those with weight decay in `[start, decay_end)`."""

    start: int
    decay_end: int
    end: int


@dataclass(frozen=True)
class _Member:
    """A parameter, and where it lies."""

    name: str
    parameter: nn.Parameter
    slot: Slot


class ParameterBank:
    """Parameters and gradients of a supernet in two flat float32 tensors; `p` and `p.grad` become views of them.

    Padding between parameters (up to 60 bytes each) holds zeros and stays zero. The bank is made after the supernet has
    been moved to its device. The supernet's `load_state_dict` keeps it; `.to(..)`, `load_state_dict(.., assign=True)`
    and `zero_grad()` break it, which `check` tells.

    Attributes:
        net: the supernet.
        data: parameters, float32 [n].
        grad: gradients, float32 [n].

    Args:
        net: a supernet whose parameters are float32 and on one device.

    Raises:
        InputError: parameters of another dtype or on several devices.
    """

    def __init__(self, net: Supernet) -> None:
        self.net = net
        kinds = {(p.dtype, p.device) for p in net.parameters()}
        if len(kinds) != 1 or next(iter(kinds))[0] != torch.float32:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise InputError(f"net: expected float32 parameters on one device, got {found}")
        self._members: list[_Member] = []
        self._end = 0
        self._fixed = self._place([("stem", net.stem), ("head", net.head)])
        self._blocks: list[list[Block]] = []
        for layer, operations in enumerate(cast("Iterable[nn.ModuleList]", net.layers)):
            named = ((f"layers.{layer}.{op}", operation) for op, operation in enumerate(operations))
            self._blocks.append([self._place([pair]) for pair in named])
        device = next(net.parameters()).device
        self.data = torch.zeros(self._end, dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.data)
        self._move_in()
        self._grad_slices = {block: self.grad[block.start : block.end] for block in self.blocks()}

    def _place(self, modules: list[tuple[str, nn.Module]]) -> Block:
        """Give the parameters of `modules` the next offsets: weights first, batch norm and biases after."""
        named = [(f"{prefix}.{name}", p) for prefix, module in modules for name, p in module.named_parameters()]
        start = self._end
        for name, parameter in named:
            if parameter.ndim > 1:
                self._append(name, parameter)
        decay_end = self._end
        for name, parameter in named:
            if parameter.ndim <= 1:
                self._append(name, parameter)
        return Block(start, decay_end, self._end)

    def _append(self, name: str, parameter: nn.Parameter) -> None:
        self._members.append(_Member(name, parameter, Slot.of(parameter, self._end)))
        self._end += room(parameter)

    @torch.no_grad()
    def _move_in(self) -> None:
        for member in self._members:
            view = member.slot.view(self.data)
            view.copy_(member.parameter)
            member.parameter.data = view
            member.parameter.grad = member.slot.view(self.grad)

    def blocks(self) -> Iterable[Block]:
        """All blocks in the order of the buffer, layer -1 first."""
        yield self._fixed
        for layer in self._blocks:
            yield from layer

    def block(self, layer: int, op: int) -> Block:
        """The block of one operation.

        Args:
            layer: 0 .. L-1, or -1 for stem and head together (then `op` is 0).
            op: index of the operation in its layer.

        Raises:
            InputError: no such layer or operation.
        """
        if layer == -1 and op == 0:
            return self._fixed
        if not 0 <= layer < len(self._blocks):
            raise InputError(f"layer: expected -1 (with op 0) to {len(self._blocks) - 1}, got {layer} with op {op}")
        if not 0 <= op < len(self._blocks[layer]):
            raise InputError(f"op: layer {layer} has operations 0 to {len(self._blocks[layer]) - 1}, got {op}")
        return self._blocks[layer][op]

    def members(self) -> dict[Block, list[nn.Parameter]]:
        """The parameters of each block that has some, in the order of the buffer."""
        found: dict[Block, list[nn.Parameter]] = {}
        blocks = iter(block for block in self.blocks() if block.end > block.start)
        block = next(blocks)
        for member in self._members:  # in the order of the blocks
            while member.slot.start >= block.end:
                block = next(blocks)
            found.setdefault(block, []).append(member.parameter)
        return found

    def active(self, path: Path) -> list[Block]:
        """The blocks that training `path` moves, in the order of the buffer; stem and head are always among them.

        Args:
            path: [L] operation indices, or an array or tensor [n, L] for the union over several paths.

        Returns:
            Blocks that hold parameters; an operation without any has none here.

        Raises:
            InputError: a path that the space does not have.
        """
        paths = list(path) if isinstance(path, (np.ndarray, torch.Tensor)) and path.ndim == 2 else [path]
        if not paths:
            raise InputError("path: expected at least one path, got none")
        found = [self._fixed]
        if len(paths) == 1:
            found += [layer[op] for layer, op in zip(self._blocks, self.net.choices(paths[0]), strict=True)]
        else:
            rows = [self.net.choices(row) for row in paths]
            for layer, ops in zip(self._blocks, zip(*rows, strict=True), strict=True):
                found += [layer[op] for op in sorted(set(ops))]
        return [block for block in found if block.end > block.start]

    def zero_grad(self, path: Path) -> None:
        """Set the gradients of the blocks that `path` uses to zero; the others are not touched.

        Raises:
            InputError: a path that the space does not have.
        """
        torch._foreach_zero_([self._grad_slices[block] for block in self.active(path)])

    def adding(self) -> AbstractContextManager[None]:
        """A context for forward passes whose graph is for one `backward()`: see `ops.direct.adding_to_grad`.

        The layers then add to the bank's gradients in their backward pass, to the same bits as autograd would.
        """
        return adding_to_grad(Flat(self.data, self.grad))

    def check(self) -> None:
        """See that every parameter and gradient of the supernet still is a view of the bank.

        Raises:
            RuntimeError: names the first one that is not.
        """
        current = dict(self.net.named_parameters())
        if current.keys() != {member.name for member in self._members}:
            raise RuntimeError("parameter bank: the supernet has gained or lost parameters since the bank was made")
        for member in self._members:
            parameter, slot = current[member.name], member.slot
            pairs = ((parameter.data, self.data, "parameter"), (parameter.grad, self.grad, "gradient"))
            for tensor, buffer, what in pairs:
                if (
                    tensor is None
                    or tensor.data_ptr() != slot.view(buffer).data_ptr()
                    or tensor.stride() != slot.stride
                ):
                    raise RuntimeError(f"parameter bank: the {what} of {member.name} no longer lies in the bank")
