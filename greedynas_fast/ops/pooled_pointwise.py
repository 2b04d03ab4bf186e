"""What comes before a network's classifier, for `direct`: 1x1 convolution, batch norm, activation, global average.

See csrc/blocks/pooled_pointwise.h. There is no operator for it: where one is wanted, layers run one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError
from greedynas_fast.reference.bn_act import ACTIVATIONS

from . import bn_core, memory
from .direct import Buffers, Laid, Running, floats_for, update_running


class PooledPointwise(Laid):
    """The layers for inputs of one shape, with statistics of the batch.

    Args:
        shape: [N, C_in, H, W] of x.
        weight: [C, C_in, 1, 1]; as the others float32 and contiguous, used by address.
        norm: weight [C], bias [C] and eps.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        running: what is to be updated, or nothing.
        threads: to run on.
        bf16: see `Laid`; the average is float32 in any case.
        more_parameters: of layers that follow.
        more_kept: floats of each array that they keep.

    Raises:
        InputError: a shape that the weight does not fit, or a single value a channel.
    """

    name = "pooled_pointwise"

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor,
        norm: tuple[Tensor, Tensor, float],
        activation: str,
        running: Sequence[Running],
        threads: int,
        bf16: bool,
        more_parameters: Sequence[Tensor] = (),
        more_kept: Sequence[int] = (),
    ) -> None:
        n, channels, height, width = shape
        out, pixels = weight.shape[0], height * width
        if weight.shape != (out, channels, 1, 1):
            raise InputError(f"head: expected a weight [{out}, {channels}, 1, 1], got {list(weight.shape)}")
        if n * pixels == 1:
            raise InputError(f"head: x: expected more than one value a channel in training, got {list(shape)}")
        gamma, beta, self._eps = norm
        super().__init__(shape, (weight, gamma, beta, *more_parameters), bf16)
        self._activation = activation
        self._core = _core.PooledPointwise(
            (n, pixels, channels, out),
            weight.data_ptr(),
            (gamma.data_ptr(), beta.data_ptr(), self._eps),
            bn_core.ACTIVATIONS[activation],
            threads,
            bf16,
        )
        self._shape = (n, out)
        self._kept = Buffers([2 * out, floats_for(n * pixels * out, bf16), *more_kept])
        self._kept_form = memory.flat(self._kept.floats)
        self._running = [(r, n * pixels, out) for r in running]

    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """See `Laid`. The result is [N, C]."""
        pooled = torch.empty(self._shape, dtype=torch.float32)
        kept = memory.empty(self._kept_form)
        self._pool(x, self._kept.addresses(kept), pooled.data_ptr())
        return pooled, kept

    def _pool(self, x: Tensor, kept: Sequence[int], pooled: int) -> None:
        moments, z = kept[:2]
        self._core.forward((x.data_ptr(), x.shape[1]), moments, z, pooled)
        update_running(self._running, [moments])

    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        grad = grad.contiguous()
        self._pool_backward(grad.data_ptr(), x, self._kept.addresses(kept), [grad_x, *gradients])

    def _pool_backward(self, grad: int, x: Tensor, kept: Sequence[int], gradients: Sequence[int]) -> None:
        moments, z = kept[:2]
        self._core.backward((x.data_ptr(), x.shape[1]), moments, z, grad, gradients)

    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        # The forward pass once more, and torch's gradients.
        with torch.enable_grad():
            leaves = leaves_of(x, *parameters)
            return gradients_for(x, torch.autograd.grad(self._pool_watched(leaves), leaves, grad))

    def _pool_watched(self, leaves: Sequence[Tensor]) -> Tensor:
        x, weight, gamma, beta = leaves[:4]
        z = F.batch_norm(F.conv2d(x, weight), None, None, gamma, beta, True, 0.0, self._eps)
        return ACTIVATIONS[self._activation](z).mean((2, 3))


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    """The same in float32, as leaves."""
    return [value.detach().float().requires_grad_() for value in tensors]


def gradients_for(x: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same with the first one in the type of x."""
    grad_x, *others = gradients
    return [grad_x.to(x.dtype), *others]
