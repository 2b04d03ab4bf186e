"""Both directions of the path filter's recurrence in one call of the compiled core, forward and backward.

The same as `recurrence.last_hidden` of selected table rows, in float32 on a CPU, where a step of training is otherwise
hundreds of operators on small tensors; see csrc/filter/recurrence.h. Gate inputs that are not finite give not-a-number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from greedynas_fast import _core

from .prefixes import Level

_PLAIN = (Tensor, torch.nn.Parameter)


class Mixed(NamedTuple):
    """Paths that are mixtures of two.

    Attributes:
        share: of the first ones.
        others: of each direction the second ones' operations, int64 [n] a step.
    """

    share: float
    others: tuple[Sequence[Tensor], Sequence[Tensor]]


def runs(*tensors: Tensor) -> bool:
    """Whether the core runs on these: in training. Without gradients the network stays `FilterEngine`'s reference."""
    plain = all(type(t) in _PLAIN and t.dtype is torch.float32 and t.device.type == "cpu" for t in tensors)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return plain and trains and not torch.compiler.is_compiling()


def last_states(
    tables: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    levels: tuple[Sequence[Level], Sequence[Level]],
    mixed: Mixed | None = None,
) -> Tensor:
    """The last hidden states of both directions.

    Args:
        tables: gate inputs of every operation, [L, N, 4H] a direction, the layers in their order.
        weights: hidden-to-hidden, [4H, H] a direction.
        levels: one a step, those of the second direction from the last layer on.
        mixed: where the paths of `levels`, which then share no beginnings, are mixtures.

    Returns:
        [n, 2H], differentiable once in tables and weights.
    """
    result: Tensor = _LastStates.apply(levels, mixed, *tables, *weights)
    return result


class _LastStates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, levels: tuple[Sequence[Level], Sequence[Level]], mixed: Mixed | None, *arrays: Tensor
    ) -> Tensor:
        tables, weights = [table.contiguous() for table in arrays[:2]], [weight.contiguous() for weight in arrays[2:]]
        held: list[Tensor] = [*tables, *weights]  # what addresses are of

        def address(indices: Tensor | None) -> int:
            if indices is None:
                return 0
            held.append(indices.contiguous())
            return held[-1].data_ptr()

        directions = []
        for direction, (table, weight) in enumerate(zip(tables, weights, strict=True)):
            steps = levels[direction]
            others = [None] * len(steps) if mixed is None else mixed.others[direction]
            rows = [
                (len(level.operations), address(level.operations), address(other), address(level.parents))
                for level, other in zip(steps, others, strict=True)
            ]
            directions.append((table.data_ptr(), weight.data_ptr(), address(steps[-1].members), rows))
        last = levels[0][-1]
        paths, hidden = len(last.operations if last.members is None else last.members), weights[0].shape[1]
        share = 1.0 if mixed is None else mixed.share
        threads = min(torch.get_num_threads(), _core.num_threads())
        ctx.passes = _core.Recurrence(paths, tables[0].shape[1], hidden, share, directions, threads)
        states = torch.empty((paths, 2 * hidden), dtype=torch.float32)
        ctx.passes.forward(states.data_ptr())
        ctx.held = held
        ctx.save_for_backward(*arrays)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        arrays = ctx.saved_tensors
        grads = [torch.empty_like(array, memory_format=torch.contiguous_format) for array in arrays]
        grad = grad.contiguous()
        places = [(grads[d].data_ptr(), grads[2 + d].data_ptr()) for d in range(2)]
        ctx.passes.backward(grad.data_ptr(), places)
        return (None, None, *grads)
