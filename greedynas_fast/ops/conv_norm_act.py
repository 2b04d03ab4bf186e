"""What comes before a network's first block, for `direct`: k x k convolution of few channels, batch norm, activation.

See csrc/blocks/conv_norm_act.h. There is no operator for it: where one is wanted, layers run one by one.
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
from .rows import rows_of


class ConvNormAct(Laid):
    """The layers for inputs of one shape, with statistics of the batch. Images get no gradient.

    Args:
        shape: [N, C_in, H, W] of x.
        weight: [C, C_in, k, k], channels-last, with an odd k; as the others float32, used by address.
        stride: of the convolution, which pads by k // 2.
        norm: weight [C], bias [C] and eps.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        running: what is to be updated, or nothing.
        threads: to run on.
        bf16: see `Laid`; images are float32 in any case.

    Raises:
        InputError: a shape that the weight does not fit, or a single value a channel.
    """

    name = "conv_norm_act"
    gives_grad_x = False

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor,
        stride: int,
        norm: tuple[Tensor, Tensor, float],
        activation: str,
        running: Sequence[Running],
        threads: int,
        bf16: bool,
    ) -> None:
        n, channels, height, width = shape
        out, kernel = weight.shape[0], weight.shape[2]
        rows = n * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
        if weight.shape[1] != channels:
            raise InputError(f"stem: expected images of {weight.shape[1]} channels, got {list(shape)}")
        if rows == 1:
            raise InputError(f"stem: x: expected more than one value a channel in training, got {list(shape)}")
        gamma, beta, self._eps = norm
        super().__init__(shape, (weight, gamma, beta), bf16)
        self._stride, self._activation = stride, activation
        self._core = _core.ConvNormAct(
            (n, height, width, channels, out, kernel, stride),
            weight.data_ptr(),
            (gamma.data_ptr(), beta.data_ptr(), self._eps),
            bn_core.ACTIVATIONS[activation],
            threads,
            bf16,
        )
        self._kept = Buffers([2 * out, floats_for(rows * out, bf16)])
        self._kept_form = memory.flat(self._kept.floats)
        self.y_shape = torch.Size((n, out, (height - 1) // stride + 1, (width - 1) // stride + 1))
        self._y_form = memory.channels_last(*self.y_shape, bf16=bf16)
        self._running = [(r, rows, out) for r in running]
        self.link = _core.ConvNormActLink(self._layout(self._kept, self._running), self._core)

    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """See `Laid`."""
        y, kept = memory.empty(self._y_form), memory.empty(self._kept_form)
        moments, z = self._kept.addresses(kept)
        self._core.forward(x.data_ptr(), moments, z, y.data_ptr())
        update_running(self._running, [moments])
        return y, kept

    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        grad, _, grad_stride = rows_of(grad)
        moments, z = self._kept.addresses(kept)
        self._core.backward(x.data_ptr(), moments, z, (grad.data_ptr(), grad_stride), gradients)

    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        # The forward pass once more, and torch's gradients.
        with torch.enable_grad():
            leaves = [value.detach().requires_grad_() for value in parameters]
            weight, gamma, beta = leaves
            z = F.conv2d(x, weight, stride=self._stride, padding=weight.shape[2] // 2)
            y = ACTIVATIONS[self._activation](F.batch_norm(z, None, None, gamma, beta, True, 0.0, self._eps))
            return None, *torch.autograd.grad(y, leaves, grad.float())
