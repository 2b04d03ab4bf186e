"""The weights of a `PathFilter` in the form that the compiled engine takes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError

from .network import PathFilter

MAX_HIDDEN = 256
MAX_WEIGHT = _core.MAX_FILTER_WEIGHT  # beyond it the engine refuses a weight
_UNITS = 16  # the kernels work on so many hidden units at a time


@dataclass(frozen=True)
class FilterTensors:
    """Contiguous float32 tensors on the CPU; L layers, N operations in the widest layer, H hidden units.

    H is rounded up to a multiple of 16. The units that are added have zero weights, so their state stays zero and all
    other numbers are the same bits.

    Attributes:
        tables: [2, L, N, 4H], `W_ih x + b_ih + b_hh` of each operation's embedding x, forward and backward direction;
            gates in torch's order.
        recurrent: [2, 4H, H], `W_hh`.
        fc1_weight: [H, 2H].
        fc1_bias: [H].
        fc2_weight: [2, H].
        fc2_bias: [2].
    """

    tables: Tensor
    recurrent: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor

    @property
    def hidden(self) -> int:
        """H, a multiple of 16."""
        return self.fc1_bias.shape[0]

    def addresses(self) -> list[int]:
        """Of the tensors, in the order of the fields."""
        return [getattr(self, field.name).data_ptr() for field in fields(self)]


@torch.no_grad()
def filter_tensors(net: PathFilter) -> FilterTensors:
    """Copies of a network's weights.

    The tables are computed on the CPU whatever the device of `net`, so that they are the same bits for every engine.

    Args:
        net: the network, on any device.

    Returns:
        Its weights.

    Raises:
        InputError: more hidden units than the engine supports.
    """
    if net.hidden > MAX_HIDDEN:
        raise InputError(f"hidden: the filter engine supports up to {MAX_HIDDEN} units, got {net.hidden}")
    on_cpu = net
    if net.embedding.device.type != "cpu" or net.embedding.dtype != torch.float32:
        on_cpu = PathFilter(net.num_ops, net.hidden).to(torch.float32)
        on_cpu.load_state_dict(net.state_dict())
    hidden = net.hidden
    extra = -hidden % _UNITS

    def gates(weight: Tensor, dim: int) -> Tensor:
        """`dim` holds four gates of H units."""
        split = weight.reshape(*weight.shape[:dim], 4, hidden, *weight.shape[dim + 1 :])
        return _padded(split, dim + 1, extra).flatten(dim, dim + 1)

    both = on_cpu.fc1.weight.reshape(hidden, 2, hidden)  # the second axis is the direction
    return FilterTensors(
        tables=gates(torch.stack(on_cpu.tables()), 3).contiguous(),
        recurrent=_padded(gates(torch.stack(on_cpu.recurrent()), 1), 2, extra).contiguous(),
        fc1_weight=_padded(_padded(both, 2, extra).flatten(1, 2), 0, extra).contiguous(),
        fc1_bias=_padded(on_cpu.fc1.bias, 0, extra).contiguous(),
        fc2_weight=_padded(on_cpu.fc2.weight, 1, extra).contiguous(),
        fc2_bias=on_cpu.fc2.bias.detach().clone(),
    )


def _padded(tensor: Tensor, dim: int, extra: int) -> Tensor:
    """`extra` zeros at the end of a dimension."""
    shape = list(tensor.shape)
    shape[dim] = extra
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
