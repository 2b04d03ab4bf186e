"""An inverted residual from the layers that hold its parameters, whichever library they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from greedynas_fast.nn.backend import Fusable, name_of, num_values, padding_of, running_moments, update_running
from greedynas_fast.nn.prepared import Prepared, Slot, slots_of
from greedynas_fast.ops import direct
from greedynas_fast.ops.inverted_residual import Gate, Norm, check, inverted_residual
from greedynas_fast.ops.inverted_residual_core import NUM_PARAMETERS, Options, Parts
from greedynas_fast.ops.inverted_residual_direct import Block, with_shapes
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


def _weight_of(conv: Any) -> Tensor:
    weight: Tensor = conv.weight
    return weight


def _no_parts(conv: Any) -> Sequence[nn.Conv2d]:
    return ()


class BlockLayers(NamedTuple):
    """The layers of an inverted residual.

    Attributes:
        expand: 1x1 convolution [E, C_in / G, 1, 1] and norm, or None.
        depthwise: convolutions of one stride and padding, one a group of channels, and norm.
        project: 1x1 convolution [C_out, E / G, 1, 1] and norm.
        gate: before the projection.
        activation: after the first two norms; one that `activation_name` knows.
        residual: add x to the result.
        weight_of: gives the weight of a 1x1 convolution that is not one `nn.Conv2d`.
        parts_of: gives the convolutions of one size that such a one is made of, if that is all there is to it.
    """

    expand: tuple[nn.Module, nn.BatchNorm2d] | None
    depthwise: tuple[Sequence[nn.Conv2d], nn.BatchNorm2d]
    project: tuple[nn.Module, nn.BatchNorm2d]
    gate: GateLayers | None
    activation: nn.Module
    residual: bool
    weight_of: Callable[[Any], Tensor] = _weight_of
    parts_of: Callable[[Any], Sequence[nn.Conv2d]] = _no_parts


def run_inverted_residual(block: Fusable, layers_of: Callable[[Any], BlockLayers], x: Tensor) -> Tensor | None:
    """Run a block as one operation, with the bookkeeping of running statistics that its batch norms would do.

    Args:
        block: the block.
        layers_of: gives its layers.
        x: [N, C_in, H, W].

    Returns:
        [N, C_out, ..], or None where the block does not fuse.

    Raises:
        InputError: see `Fusable.fuses`.
    """
    seen = block.seen_fit(x)
    if seen is None:
        return _by_operation(layers_of(block), x) if block.fuses(x) else None
    prepared: _Prepared = seen.prepare(lambda: _Prepared(layers_of(block)))
    y = prepared.run(x)
    return _by_operation(prepared.layers, x) if y is None else y


def _by_operation(layers: BlockLayers, x: Tensor) -> Tensor:
    expand, depthwise, project = layers.expand, layers.depthwise, layers.project
    y, moments = inverted_residual(
        x,
        None if expand is None else (layers.weight_of(expand[0]), _norm(expand[1])),
        ([conv.weight for conv in depthwise[0]], _norm(depthwise[1])),
        (layers.weight_of(project[0]), _norm(project[1])),
        None if layers.gate is None else layers.gate.parameters(),
        stride=depthwise[0][0].stride[0],
        padding=padding_of(depthwise[0][0]),
        activation=name_of(layers.activation),
        residual=layers.residual,
    )
    if expand is not None:
        update_running(expand[1], moments.pop(0), num_values(x))
    update_running(depthwise[1], moments[0], num_values(y))
    update_running(project[1], moments[1], num_values(y))
    return y


def _norm(norm: nn.BatchNorm2d) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps, running_moments(norm))


class _Prepared(Prepared):
    """A block.

    Attributes:
        layers: of the block.
    """

    def __init__(self, layers: BlockLayers) -> None:
        self.layers = layers
        expand, (convs, norm2), (project, norm3), gate = layers[:4]
        norms = [*(() if expand is None else (expand[1],)), norm2, norm3]
        self._parts = (() if expand is None else layers.parts_of(expand[0])), layers.parts_of(project)
        of_expand, of_project = self._parts
        slots = (
            *((None,) * 3 if expand is None else (_slot(expand[0], of_expand), *slots_of(expand[1]))),
            *slots_of(norm2),
            *(_slot(project, of_project), *slots_of(norm3)),
            *((None,) * 4 if gate is None else (*slots_of(gate.reduce), *slots_of(gate.expand))),
            *((conv, "weight") for conv in (*convs, *of_expand, *of_project)),
        )
        super().__init__(slots, norms, 3 - len(norms))

    def lay_out(
        self, x: Tensor, parameters: list[Tensor | None], running: list[direct.Running], bf16: bool
    ) -> direct.Laid:
        """See `Prepared`."""
        layers = self.layers
        own, others = parameters[:NUM_PARAMETERS], cast("list[Tensor]", parameters[NUM_PARAMETERS:])
        in_order = iter(others)
        weights, *of_both = ([next(in_order) for _ in convs] for convs in (layers.depthwise[0], *self._parts))
        parts = Parts(*of_both)
        whole = with_shapes(own, parts)
        first, second, third = (0.0, *(norm.eps for norm in self._norms))[-3:]
        options = Options(
            layers.depthwise[0][0].stride[0],
            padding_of(layers.depthwise[0][0]),
            name_of(layers.activation),
            layers.residual,
            (first, second, third),
            ("", "") if layers.gate is None else layers.gate[2:],
            True,
        )

        def convolution(weight: int, norm: int) -> tuple[Tensor, Norm]:
            found = cast("list[Tensor]", whole)
            return found[weight], Norm(found[norm], found[norm + 1], 0.0)

        check(
            x,
            None if layers.expand is None else convolution(0, 1),
            (weights, convolution(3, 3)[1]),
            convolution(5, 6),
            options.stride,
            options.padding,
            options.activation,
            options.residual,
        )
        return Block(x.shape, own, weights, parts, options, running, threads(), bf16)


def _slot(conv: nn.Module, parts: Sequence[nn.Conv2d]) -> Slot | None:
    """Of the weight; None if it is in parts."""
    return None if parts else (conv, "weight")
