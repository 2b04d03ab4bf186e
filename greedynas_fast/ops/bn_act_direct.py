"""Batch normalisation and activation for `direct`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from greedynas_fast import _core
from greedynas_fast.errors import InputError

from . import bn_core, memory
from .direct import Laid, Running, update_running
from .rows import rows_of


class NormAct(Laid):
    """A batch norm and the activation after it for inputs of one shape, with statistics of the batch.

    Args:
        shape: [N, C, H, W] of x.
        weight: [C]; as the bias float32 and contiguous, used by address.
        bias: [C].
        eps: added to the variance.
        activation: `identity`, `relu`, `hard_swish`, `silu` or `relu6`.
        running: what is to be updated, or nothing.
        threads: to run on.
        bf16: see `Laid`.

    Raises:
        InputError: another number of channels than x has, or a single value a channel.
    """

    name = "bn_act"

    def __init__(
        self,
        shape: Sequence[int],
        weight: Tensor,
        bias: Tensor,
        eps: float,
        activation: str,
        running: Sequence[Running],
        threads: int,
        bf16: bool,
    ) -> None:
        super().__init__(shape, (weight, bias), bf16)
        n, channels, height, width = shape
        rows = n * height * width
        if weight.shape != (channels,):
            raise InputError(f"bn_act: weight: expected floating [{channels}], got {weight.dtype} {list(weight.shape)}")
        if rows == 1:
            raise InputError(f"bn_act: x: expected more than one value a channel in training, got {list(shape)}")
        self._layer = (rows, channels, bf16, bn_core.ACTIVATIONS[activation], False)
        self._affine = (weight.data_ptr(), bias.data_ptr(), eps, threads)
        self._options = (None, eps, activation, True, (True, True, True, False))
        self._running = [(r, rows, channels) for r in running]

    def forward(self, x: Tensor, keep: bool, given: Any = None) -> tuple[Tensor, Tensor]:
        """See `Laid`."""
        y = memory.empty(self._x_form)
        moments = torch.empty((2, x.shape[1]), dtype=torch.float32)
        layer = _core.BnAct(*self._layer, moments.data_ptr(), *self._affine)
        layer.forward(True, x.data_ptr(), x.shape[1], 0, 0, y.data_ptr())
        update_running(self._running, [moments.data_ptr()])
        return y, moments

    def _backward(self, grad: Tensor, x: Tensor, kept: Tensor, grad_x: int, gradients: list[int]) -> None:
        grad, _, grad_stride = rows_of(grad)
        layer = _core.BnAct(*self._layer, kept.data_ptr(), *self._affine)
        layer.backward(
            True,
            *(grad.data_ptr(), grad_stride, x.data_ptr(), x.shape[1], 0, 0),
            *(grad_x, 0, *gradients),
        )

    def _backward_watched(
        self, grad: Tensor, x: Tensor, kept: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        found: Sequence[Tensor] = bn_core.backward_op(grad, x, kept, *parameters, *self._options)
        return found[:3]
