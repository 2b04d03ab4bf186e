"""An inverted residual from the layers that hold its parameters, whichever library they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, activation_name, num_values, running_moments, update_running
from greedynas_fast.ops import inverted_residual_direct as direct
from greedynas_fast.ops.inverted_residual import Gate, Norm, check, inverted_residual
from greedynas_fast.ops.inverted_residual_core import Options
from greedynas_fast.ops.library import unwatched
from greedynas_fast.ops.rows import threads


class GateLayers(NamedTuple):
    """Squeeze-and-excitation.

    Attributes:
        reduce: 1x1 convolution with bias.
        expand: the same.
        activation: between them, by name.
        gate: its name.
    """

    reduce: nn.Conv2d
    expand: nn.Conv2d
    activation: str
    gate: str

    def parameters(self) -> Gate:
        """As the operations take them."""
        reduce, expand = self.reduce, self.expand
        assert reduce.bias is not None
        assert expand.bias is not None
        return Gate(reduce.weight, reduce.bias, expand.weight, expand.bias, self.activation, self.gate)


class BlockLayers(NamedTuple):
    """The layers of an inverted residual.

    Attributes:
        expand: 1x1 convolution [E, C_in / G, 1, 1] and norm, or None.
        depthwise: convolutions, one a group of channels, and norm.
        project: 1x1 convolution [C_out, E / G, 1, 1] and norm.
        gate: before the projection.
        activation: after the first two norms; one that `activation_name` knows.
        residual: add x to the result.
        weight_of: gives the weight of a 1x1 convolution that is not one `nn.Conv2d`.
    """

    expand: tuple[nn.Module, nn.BatchNorm2d] | None
    depthwise: tuple[Sequence[nn.Conv2d], nn.BatchNorm2d]
    project: tuple[nn.Module, nn.BatchNorm2d]
    gate: GateLayers | None
    activation: nn.Module
    residual: bool
    weight_of: Callable[[Any], Tensor] = attrgetter("weight")


def run_inverted_residual(block: Fusable, layers_of: Callable[[Any], BlockLayers], x: Tensor) -> Tensor:
    """Run a block as one operation, with the bookkeeping of running statistics that its batch norms would do.

    Args:
        block: of which `fuses(x)` has just said yes.
        layers_of: gives its layers.
        x: [N, C_in, H, W].
    """
    if torch.compiler.is_compiling():
        return _by_operation(layers_of(block), x)
    memo = block.layers_seen().memo
    prepared: _Prepared | None = memo.get("inverted_residual")
    if prepared is None:
        prepared = memo["inverted_residual"] = _Prepared(layers_of(block))
    y = prepared.run(x)
    return _by_operation(prepared.layers, x) if y is None else y


def _by_operation(layers: BlockLayers, x: Tensor) -> Tensor:
    expand, depthwise, project = layers.expand, layers.depthwise, layers.project
    name = activation_name(layers.activation)
    assert name is not None
    y, moments = inverted_residual(
        x,
        None if expand is None else (layers.weight_of(expand[0]), _norm(expand[1])),
        ([conv.weight for conv in depthwise[0]], _norm(depthwise[1])),
        (layers.weight_of(project[0]), _norm(project[1])),
        None if layers.gate is None else layers.gate.parameters(),
        stride=depthwise[0][0].stride[0],
        activation=name,
        residual=layers.residual,
    )
    if expand is not None:
        update_running(expand[1], moments.pop(0), num_values(x))
    update_running(depthwise[1], moments[0], num_values(y))
    update_running(project[1], moments[1], num_values(y))
    return y


def _norm(norm: nn.BatchNorm2d) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps, running_moments(norm))


_MODE = attrgetter("training", "track_running_stats", "momentum", "eps")
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")

# Where a tensor is kept: `_parameters` or `_buffers` of a layer, and its name there.
_Slot = tuple[dict[str, Any], str]


class _Prepared:
    """A block whose layers stay the same, with a `direct.Block` for the inputs and tensors of its last call.

    Whether these are the same is looked up in each call, and nothing else is.

    Attributes:
        layers: of the block.
    """

    def __init__(self, layers: BlockLayers) -> None:
        self.layers = layers
        expand, (convs, norm2), (project, norm3), gate = layers[:4]
        self._norms = [*(() if expand is None else (expand[1],)), norm2, norm3]
        # The parameters in the order of the core, None where the block has no such layer.
        self._slots: list[tuple[nn.Module, str] | None] = [
            *((None,) * 3 if expand is None else ((expand[0], "weight"), *_slots_of(expand[1]))),
            *_slots_of(norm2),
            *((project, "weight"), *_slots_of(norm3)),
            *((None,) * 4 if gate is None else (*_slots_of(gate.reduce), *_slots_of(gate.expand))),
        ]
        slots = [slot for slot in self._slots if slot is not None] + [(conv, "weight") for conv in convs]
        self._parameters: list[_Slot] = [(layer._parameters, name) for layer, name in slots]
        self._buffers: list[_Slot] = [(norm._buffers, name) for norm in self._norms for name in _RUNNING]
        self._last = _Laid((), [], [], None)

    def run(self, x: Tensor) -> Tensor | None:
        """The result; None where the operation has to be asked.

        That is for other types than float32, other modes than training, and whatever wants to see operators.
        """
        if x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu") or not unwatched(x):
            return None
        try:
            parameters = [place[name] for place, name in self._parameters]
            buffers = [value for place, name in self._buffers if (value := place[name]) is not None]
        except KeyError:  # a parametrised layer
            return None
        tensors = [*parameters, *buffers]
        addresses = [tensor.data_ptr() for tensor in tensors]
        key = (x.shape, x.is_contiguous(memory_format=torch.channels_last), threads(), *map(_MODE, self._norms))
        laid = self._last
        if key != laid.key or addresses != laid.addresses or not all(map(is_, tensors, laid.tensors)):
            block = self._lay_out(x, tensors) if x.numel() and key[1] else None
            laid = self._last = _Laid(key, tensors, addresses, block)
        return None if laid.block is None else direct.run(x, laid.block, parameters)

    def _lay_out(self, x: Tensor, tensors: list[Tensor]) -> direct.Block | None:
        """The block for this input, or None; raises what the operation would on an input that does not fit."""
        layers, norms = self.layers, self._norms
        plain = all(isinstance(slot[0], nn.Conv2d | nn.BatchNorm2d) for slot in self._slots if slot is not None)
        dense = all(t.dtype in (torch.float32, torch.int64) and t.is_contiguous() for t in tensors)
        if not (plain and dense and unwatched(*tensors) and all(norm.training for norm in norms)):
            return None
        running = []
        for which, norm in enumerate(norms, start=3 - len(norms)):
            if norm.track_running_stats:
                if norm.momentum is None or any(norm._buffers[name] is None for name in _RUNNING):
                    return None
                addresses = (norm._buffers[name].data_ptr() for name in _RUNNING)
                running.append(direct.Running(which, norm.momentum, *addresses))
        given = iter(tensors)
        parameters = [None if slot is None else next(given) for slot in self._slots]
        weights = [conv.weight for conv in layers.depthwise[0]]
        of_norms = [Norm(norm.weight, norm.bias, norm.eps) for norm in norms]
        stride, name = layers.depthwise[0][0].stride[0], activation_name(layers.activation)
        assert name is not None
        project = parameters[5]
        assert project is not None
        expand = None if parameters[0] is None else (parameters[0], of_norms[0])
        check(x, expand, (weights, of_norms[-2]), (project, of_norms[-1]), stride, name, layers.residual)
        eps = ([0.0] if expand is None else []) + [norm.eps for norm in norms]
        gate = ("", "") if layers.gate is None else layers.gate[2:]
        options = Options(stride, name, layers.residual, tuple(eps), gate, True)
        return direct.Block(x.shape, parameters, weights, options, running, threads())


class _Laid(NamedTuple):
    """A block, and what it is for; replaced as a whole, so that threads do not see half of it."""

    key: tuple[Any, ...]
    tensors: list[Tensor]
    addresses: list[int]
    block: direct.Block | None


def _slots_of(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(layer, "weight"), (layer, "bias")]
