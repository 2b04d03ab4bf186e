"""One layer of the supernet for a batch of several paths at once, each group of samples with its own operation.

Inverted residuals of all groups run together: op-masked 1x1 convolutions, norms, pooling and gates, one launch for all
groups; depthwise convolutions and MixConv by the compiled core, a call a group, as every group has its own kernel
sizes, weights and scale. An identity costs nothing but being passed on. All else runs as its module, a group at a time.
On the CPU the op-masked parts are plain PyTorch, and the fused modules one after the other are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from greedynas_fast.errors import InputError
from greedynas_fast.nn.backend import activation_name
from greedynas_fast.nn.inverted_residual import InvertedResidual, MixedConv
from greedynas_fast.nn.squeeze_excite import SqueezeExcite
from greedynas_fast.ops.masked_gate import masked_gates, masked_squeeze
from greedynas_fast.ops.masked_norm_act import masked_norm_act, masked_scale_shift
from greedynas_fast.ops.masked_pointwise import masked_pointwise
from greedynas_fast.ops.mixconv import mixconv
from greedynas_fast.ops.ragged import Ragged, ragged
from greedynas_fast.ops.rows import autocast
from greedynas_fast.supernet.bank import ParameterBank
from greedynas_fast.supernet.batchnorm import batch_statistics


def run_masked_layer(
    operations: Sequence[nn.Module],
    choices: Sequence[int],
    x: Tensor,
    layout: Ragged,
    bank: ParameterBank | None = None,
    *,
    allow_tf32: bool = False,
) -> tuple[Tensor, Ragged]:
    """Run every group of samples through its operation of a layer, as if each were alone.

    All batch norms normalise by the statistics of the group, whatever mode the modules are in, and running statistics
    are left alone. Hooks of the layers inside an inverted residual are not called. Gradients reach the operations that
    a group has chosen; those of the others are not touched.

    What runs together are inverted residuals that expand and have the same activation, stride, eps and residual as the
    first of them, and identities. Shuffle units, bottlenecks, strided identities and other inverted residuals run as
    their module, a group at a time.

    Args:
        operations: the modules of the layer, all from [N, C_in, H, W] to [N, C_out, H', W'].
        choices: the operation of each group.
        x: flat, of the layout.
        layout: all groups C_in wide; one without samples gives none.
        bank: holds the parameters of the operations, which are then read and their gradients added in place. Without
            one, those of the chosen operations are first gathered in a flat tensor.
        allow_tf32: as `masked_pointwise`: float32 products on tensor cores with 10 bits of mantissa.

    Returns:
        y, flat, of the dtype of x, or autocast's; and its layout, all groups C_out wide.

    Raises:
        InputError: choices, x and layout that do not fit together, or a single value a channel to normalise.
    """
    _check(operations, choices, x, layout)
    x = autocast(x)
    chosen = [operations[op] for op in choices]
    traits = [_traits(operation) for operation in chosen]
    common = next((trait for trait in traits if trait is not None), None)
    joint = [
        cast("InvertedResidual", operation) if trait is not None and trait == common else None
        for operation, trait in zip(chosen, traits, strict=True)
    ]
    if all(isinstance(operation, nn.Identity) for operation in chosen):
        return x, layout
    if common is None:
        return _pack([_alone(op, part) for op, part in zip(chosen, layout.unpack(x), strict=True)], layout)
    pixels = -(-layout.height // common.stride) * -(-layout.width // common.stride)
    if any(block is not None and samples * pixels == 1 for block, samples in zip(joint, layout.samples, strict=True)):
        raise InputError(f"run_masked_layer: a group has a single value a channel after stride {common.stride}")
    parameters = _gathered(joint) if bank is None else _Parameters(bank.data, bank.grad, {})
    alone = [op for op, block in zip(chosen, joint, strict=True) if block is None]
    if common.residual and all(isinstance(op, nn.Identity) for op in alone):
        # The residual of a group without a block is its result.
        z, inner, scale_shift = _until_last_norm(joint, common, x, layout, parameters, allow_tf32)
        return masked_norm_act(z, inner, scale_shift, residual=x, layout_out=layout), layout
    z, inner, scale_shift = _until_last_norm(joint, common, x, layout, parameters, allow_tf32)
    residual = _masked(x, layout, joint)[0] if common.residual else None
    y = masked_norm_act(z, inner, scale_shift, residual=residual)
    if not alone:
        return y, inner
    pairs = zip(chosen, joint, layout.unpack(x), inner.unpack(y), strict=True)
    return _pack([_alone(op, part) if block is None else own for op, block, part, own in pairs], layout)


class _Traits(NamedTuple):
    """What inverted residuals that run together have in common."""

    activation: str
    stride: int
    residual: bool
    eps: tuple[float, float, float]


class _Parameters(NamedTuple):
    """Where parameters lie: a flat tensor, the gradients that belong to it if they are added in place, and offsets."""

    flat: Tensor
    grad: Tensor | None
    offsets: dict[int, int]

    def at(self, parameter: Tensor) -> int:
        """Offset of a parameter."""
        if self.grad is None:
            return self.offsets[id(parameter)]
        at = (parameter.data_ptr() - self.flat.data_ptr()) // self.flat.element_size()
        if not 0 <= at <= len(self.flat) - parameter.numel():
            raise InputError("run_masked_layer: bank: it does not hold the parameters of the operations")
        return at

    def of_norms(self, blocks: Sequence[InvertedResidual | None], name: str) -> tuple[list[int], list[int]]:
        """Offsets of weights and biases of the blocks' batch norms of this name."""
        norms = [None if block is None else block.get_submodule(name) for block in blocks]
        weights = [0 if norm is None else self.at(cast("Tensor", norm.weight)) for norm in norms]
        return weights, [0 if norm is None else self.at(cast("Tensor", norm.bias)) for norm in norms]


def _traits(operation: nn.Module) -> _Traits | None:
    """None for operations that run as their module."""
    if not isinstance(operation, InvertedResidual) or not operation.expands:
        return None
    name = activation_name(operation.act2)
    eps = (operation.bn1.eps, operation.bn2.eps, operation.bn3.eps)
    stride = _depthwise(operation)[0].stride[0]
    return None if name is None else _Traits(name, stride, operation.has_residual, eps)


def _depthwise(block: InvertedResidual) -> list[nn.Conv2d]:
    convs = list(block.conv_dw) if isinstance(block.conv_dw, MixedConv) else [block.conv_dw]
    return cast("list[nn.Conv2d]", convs)


def _until_last_norm(
    blocks: Sequence[InvertedResidual | None],
    common: _Traits,
    x: Tensor,
    layout: Ragged,
    parameters: _Parameters,
    allow_tf32: bool,
) -> tuple[Tensor, Ragged, Tensor]:
    """What the last norm takes, its layout, and the norm as scale and shift; groups without a block are masked."""
    flat, into = parameters.flat, parameters.grad
    x, narrow = _masked(x, layout, blocks)
    wide = narrow.with_widths([0 if block is None else block.conv_pw.out_channels for block in blocks])
    weights = [0 if block is None else parameters.at(block.conv_pw.weight) for block in blocks]
    z, moments = masked_pointwise(
        x, flat, weights, narrow, wide, bank_grad=into, want_stats=True, allow_tf32=allow_tf32
    )
    norm = masked_scale_shift(
        moments, wide, flat, *parameters.of_norms(blocks, "bn1"), eps=common.eps[0], bank_grad=into
    )
    z, wide = _route_depthwise(blocks, common, z, wide, norm)
    z, norm, pooled = masked_squeeze(
        z,
        wide,
        flat,
        *parameters.of_norms(blocks, "bn2"),
        pools=[block is not None and isinstance(block.se, SqueezeExcite) for block in blocks],
        activation=common.activation,
        eps=common.eps[1],
        bank_grad=into,
    )
    gates = [
        block.se.gate_layers().parameters() if block is not None and isinstance(block.se, SqueezeExcite) else None
        for block in blocks
    ]
    narrow = wide.with_widths([0 if block is None else block.conv_pwl.out_channels for block in blocks])
    weights = [0 if block is None else parameters.at(block.conv_pwl.weight) for block in blocks]
    z, moments = masked_pointwise(
        z,
        flat,
        weights,
        wide,
        narrow,
        scale=norm[0],
        shift=norm[1],
        activation=common.activation,
        gate=masked_gates(pooled, wide, gates) if any(gates) else None,
        bank_grad=into,
        want_stats=True,
        allow_tf32=allow_tf32,
    )
    offsets = parameters.of_norms(blocks, "bn3")
    return z, narrow, masked_scale_shift(moments, narrow, flat, *offsets, eps=common.eps[2], bank_grad=into)


def _route_depthwise(
    blocks: Sequence[InvertedResidual | None], common: _Traits, z: Tensor, layout: Ragged, norm: Tensor
) -> tuple[Tensor, Ragged]:
    """Each group through the convolutions of its block, which normalise and activate it on load."""
    outputs = []
    for block, part, vectors in zip(
        blocks, layout.unpack(z), torch.split(norm, list(layout.widths), dim=1), strict=True
    ):
        if block is None or not len(part):
            height, width = (-(-size // common.stride) for size in part.shape[2:])
            outputs.append(part.new_empty((part.shape[0], part.shape[1], height, width)))
            continue
        convs = _depthwise(block)
        kernels = [conv.kernel_size[0] for conv in convs]
        norm_act = (vectors[0], vectors[1], common.activation)
        outputs.append(mixconv(part, [conv.weight for conv in convs], kernels, common.stride, norm_act))
    return _pack(outputs, layout, layout.widths)


def _masked(x: Tensor, layout: Ragged, blocks: Sequence[InvertedResidual | None]) -> tuple[Tensor, Ragged]:
    """The groups that have a block; x itself if all do."""
    if None not in blocks:
        return x, layout
    masked = layout.with_widths(
        [0 if block is None else width for block, width in zip(blocks, layout.widths, strict=True)]
    )
    pairs = zip(blocks, layout.unpack(x), strict=True)
    return masked.pack([part[:, :0] if block is None else part for block, part in pairs]), masked


def _alone(operation: nn.Module, part: Tensor) -> Tensor | None:
    """The result of a module for one group; None if it has no samples."""
    if not len(part):
        return None
    if isinstance(operation, nn.Identity):
        return part
    with batch_statistics(operation):
        y: Tensor = operation(part)
    return y.to(part.dtype)


def _pack(parts: Sequence[Tensor | None], layout: Ragged, widths: Sequence[int] | None = None) -> tuple[Tensor, Ragged]:
    """One flat activation of the groups' results, and its layout; widths: those of the results, None: all equal."""
    some = next(part for part in parts if part is not None and len(part))
    widths = [some.shape[1]] * layout.groups if widths is None else widths
    out = ragged(layout.samples, some.shape[2], some.shape[3], widths)
    shapes = [(n, c, out.height, out.width) for n, c in zip(out.samples, out.widths, strict=True)]
    found = [
        some.new_empty(shape) if part is None or not part.numel() else part
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return out.pack(found), out


def _gathered(blocks: Sequence[InvertedResidual | None]) -> _Parameters:
    """Copies of the parameters that op-masked operations need, through which autograd reaches them."""
    found: dict[int, Tensor] = {}
    for block in blocks:
        if block is not None:
            needed = [block.conv_pw.weight, block.conv_pwl.weight]
            for norm in (block.bn1, block.bn2, block.bn3):
                needed += [norm.weight, norm.bias]
            found |= {id(parameter): parameter for parameter in needed}
    offsets, end = {}, 0
    for key, parameter in found.items():
        offsets[key] = end
        end += parameter.numel()
    return _Parameters(torch.cat([parameter.reshape(-1) for parameter in found.values()]), None, offsets)


def _check(operations: Sequence[nn.Module], choices: Sequence[int], x: Tensor, layout: Ragged) -> None:
    name = "run_masked_layer"
    if len(choices) != layout.groups:
        raise InputError(f"{name}: choices: expected one for each of {layout.groups} groups, got {len(choices)}")
    for op in choices:
        if not 0 <= op < len(operations):
            raise InputError(f"{name}: choices: the layer has operations 0 to {len(operations) - 1}, got {op}")
    if x.shape != (layout.numel,) or not x.is_floating_point():
        raise InputError(f"{name}: x: expected floating [{layout.numel}], got {x.dtype} {list(x.shape)}")
    if len(set(layout.widths)) != 1 or not layout.live:
        raise InputError(f"{name}: layout: expected groups of one width and a sample, got {layout}")
