"""The tensors of one network in a few flat ones, so that an optimizer or an average has few to go through.

A small network has dozens of tensors of a few values each; on a CPU, to begin an operation takes longer than to do it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from greedynas_fast.ops.direct import Flat, adding_to_grad
from greedynas_fast.supernet.network import Network
from greedynas_fast.supernet.slots import Slot, room

State = dict[str, Any]


class FlatTensors(nn.Module):
    """Copies of a network's tensors, flat, with zeros between them.

    Attributes:
        values: parameters, float32 [n]: first those without weight decay, of one dimension, then, from `decay_start`,
            those with it.
        decay_start: see there.
        statistics: running means and variances, float32 [k].
        counters: of batches, int64 [c].

    Args:
        network: on the CPU; its parameters are float32, its buffers float32 or int64.
    """

    values: nn.Parameter
    statistics: Tensor
    counters: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._slots: dict[str, list[Slot]] = {}
        for name, tensors in _kinds(network).items():
            *starts, end = accumulate(map(room, tensors), initial=0)
            self._slots[name] = list(map(Slot.of, tensors, starts))
            flat = torch.zeros(end, dtype=torch.int64 if name == "counters" else torch.float32)
            setattr(self, name, nn.Parameter(flat) if name == "values" else nn.Buffer(flat))
        self.decay_start = sum(map(room, _by_decay(network)[0]))
        for tensor, view in self._pairs(network):
            view.copy_(tensor.detach())

    def move_in(self, network: nn.Module) -> None:
        """Make the tensors of a network of the same layers views of these, with the values that are here.

        Its `load_state_dict` keeps them so; `.to(..)` and `load_state_dict(.., assign=True)` do not.
        """
        for tensor, view in self._pairs(network):
            tensor.data = view

    def views(self, flat: Tensor, name: str = "values") -> list[Tensor]:
        """What each tensor of the network has in a flat one, which is laid out as the attribute `name`."""
        return [slot.view(flat.detach()) for slot in self._slots[name]]

    def _pairs(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        for name, tensors in _kinds(network).items():
            yield from zip(tensors, self.views(getattr(self, name), name), strict=True)


class FlatNetwork:
    """A network whose tensors and gradients are views of flat ones, for a single process on a CPU.

    Attributes:
        network: the network.
        tensors: its tensors, which an average may be taken of.
        groups: for an optimizer that treats each value by itself: parameters without weight decay, then those with it,
            as timm groups a network's. Their gradients are to be set to zero, not to None.

    Args:
        network: see `FlatTensors`.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.tensors = network, FlatTensors(network)
        self.tensors.move_in(network)
        values, start = self.tensors.values.detach(), self.tensors.decay_start
        self._flat = Flat(values, torch.zeros_like(values))
        others, weights = _by_decay(network)
        self._counts = [len(others), len(weights)]
        for parameter, grad in zip((*others, *weights), self.tensors.views(self._flat.grad), strict=True):
            parameter.grad = grad
        parts = [nn.Parameter(values[:start]), nn.Parameter(values[start:])]
        parts[0].grad, parts[1].grad = self._flat.grad[:start], self._flat.grad[start:]
        self.groups: list[dict[str, Any]] = [{"params": parts[:1], "weight_decay": 0.0}, {"params": parts[1:]}]

    def loss(self, x: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """See `Network.loss`; what comes out is for one `backward()`, see `ops.direct.adding_to_grad`."""
        with adding_to_grad(self._flat):
            return self.network.loss(x, labels, label_smoothing)

    def split(self, state: State) -> State:
        """The state dict of an optimizer of `groups` as that of one of the network in timm's groups."""
        parts = state["state"]
        singles: dict[int, State] = {index: {} for index in range(sum(self._counts))} if parts else {}
        for key, value in parts.get(0, {}).items():
            views = self.tensors.views(torch.cat([value, parts[1][key]])) if _is_of_values(value) else None
            for index, single in singles.items():
                single[key] = copy.deepcopy(value) if views is None else views[index]
        return {"state": singles, "param_groups": _numbered(state["param_groups"], self._counts)}

    def join(self, state: State) -> State:
        """The other way round."""
        singles, start = state["state"], self.tensors.decay_start
        parts: dict[int, State] = {0: {}, 1: {}} if singles else {}
        for key, value in singles.get(0, {}).items():
            if _is_of_values(value):
                flat = torch.zeros_like(self._flat.data)
                for index, view in enumerate(self.tensors.views(flat)):
                    view.copy_(singles[index][key])
                parts[0][key], parts[1][key] = flat[:start], flat[start:]
            else:
                parts[0][key], parts[1][key] = copy.deepcopy(value), copy.deepcopy(value)
        return {"state": parts, "param_groups": _numbered(state["param_groups"], [1, 1])}


def _by_decay(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters without weight decay, and those with it."""
    parameters = list(network.parameters())
    return [p for p in parameters if p.ndim <= 1], [p for p in parameters if p.ndim > 1]


def _kinds(network: nn.Module) -> dict[str, list[Tensor]]:
    """The tensors of a network by the attribute of `FlatTensors` that holds them, in its order."""
    others, weights = _by_decay(network)
    buffers = list(network.buffers())
    return {
        "values": [*others, *weights],
        "statistics": [buffer for buffer in buffers if buffer.is_floating_point()],
        "counters": [buffer for buffer in buffers if not buffer.is_floating_point()],
    }


def _is_of_values(value: Any) -> bool:
    """Whether this part of an optimizer's state has a number for each value, and not one for the parameter."""
    return isinstance(value, Tensor) and value.ndim > 0


def _numbered(groups: Sequence[State], counts: Sequence[int]) -> list[State]:
    """The groups of a state dict with other numbers of parameters."""
    indices = iter(range(sum(counts)))
    return [{**group, "params": [next(indices) for _ in range(n)]} for group, n in zip(groups, counts, strict=True)]
