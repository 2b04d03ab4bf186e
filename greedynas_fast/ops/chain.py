"""Several layers one after the other as one step of autograd, which adds to the gradients of their parameters.

For what it saves see csrc/bindings/chain.cpp. Only for `direct.adding_to_grad`: autograd knows of no parameter. What
follows torch's operators in the backward pass alone does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedynas_fast import _core

from . import memory
from .direct import Flat, Laid, flat_parameters, gradient_places, once_differentiable
from .head_loss import HeadLoss, HeadTargets
from .rows import rows_of


def run_chain(
    x: Tensor, layers: Sequence[Laid], parameters: Sequence[Tensor], targets: HeadTargets | None = None
) -> Tensor:
    """Run layers.

    Args:
        x: channels-last, without gaps, of the shape and type that the first layer is laid out for; `unwatched`.
        layers: at least one, each with a `link` and laid out for the result of the one before.
        parameters: of all, in their order; leaves that `direct.adds` says yes to.
        targets: of the last one, if it is a `HeadLoss`.

    Raises:
        InputError: a label that is no class.
    """
    y: Tensor = _RunChain.apply(x, None if x.requires_grad else parameters[0], layers, parameters, targets)
    return y


class _RunChain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor | None,
        layers: Sequence[Laid],
        parameters: Sequence[Tensor],
        targets: HeadTargets | None,
    ) -> Tensor:
        first, last = layers[0], layers[-1]
        places = last.places_of(targets) if isinstance(last, HeadLoss) and targets is not None else None
        form = None if places else memory.channels_last(*last.y_shape, bf16=last.bf16)
        y = torch.empty((), dtype=torch.float32) if form is None else memory.empty(form)
        ctx.chain = _core.Chain([layer.link for layer in layers if layer.link is not None])
        ctx.chain.forward((x.data_ptr(), x.shape[1]), places, y.data_ptr())
        ctx.flat = _with_sums(ctx.chain, flat_parameters())
        ctx.first, ctx.parameters, ctx.is_image = first, parameters, places is None
        ctx.save_for_backward(x)
        ctx.versions = _versions(parameters)  # to save a hundred small tensors would take longer
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        (x,) = ctx.saved_tensors
        if _versions(ctx.parameters) != ctx.versions:
            raise RuntimeError("a parameter needed for gradient computation has been modified by an inplace operation")
        grad, _, grad_stride = rows_of(grad) if ctx.is_image else (grad, 0, 0)
        grad_x, place = ctx.first.room_for_grad_x()
        sums = gradient_places(ctx.parameters) if ctx.flat is None else []
        # Those that the core cannot add to are added to afterwards.
        others: dict[int, Tensor] = {}
        if 0 in sums:
            others = {i: torch.zeros_like(ctx.parameters[i]) for i, address in enumerate(sums) if address == 0}
            sums = [others[i].data_ptr() if i in others else address for i, address in enumerate(sums)]
        ctx.chain.backward((x.data_ptr(), x.shape[1]), (grad.data_ptr(), grad_stride), place, sums)
        for i, more in others.items():
            parameter = ctx.parameters[i]
            parameter.grad = more if parameter.grad is None else parameter.grad.add_(more)
        return grad_x, None, None, None, None


def _with_sums(chain: _core.Chain, flat: Flat | None) -> Flat | None:
    """The same, to be kept until the backward pass, if all parameters of the chain are there."""
    if flat is None:
        return None
    begin = flat.data.data_ptr()
    there = chain.sums_at(begin, begin + flat.data.nbytes, flat.grad.data_ptr() - begin)
    return flat if there else None


def _versions(parameters: Sequence[Tensor]) -> list[int]:
    return [parameter._version for parameter in parameters]
